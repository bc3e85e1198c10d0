"""Start the engine inside one process of the Python that has vLLM, and read exact bytes off its workers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.errors import OutsideError
from planner.verify.boot import Progress, ended, tell_milestones
from planner.verify.outcome import Outcome
from planner.verify.process import HUNG_PATIENCE_SECONDS, Supervised
from planner.verify.readings import Failure, Figure, Reading, last_words, partial_reading, version_in

_POLL_SECONDS = 0.2
_IN_PROCESS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
"""The engine core in the probe's own process, and worker functions that may be sent to it."""
_RANK_TERMS = (
    "total_memory_bytes",
    "requested_memory_bytes",
    "startup_free_bytes",
    "weights_memory_bytes",
    "peak_activation_bytes",
    "non_torch_bytes",
    "cuda_graph_estimate_bytes",
    "available_kv_cache_bytes",
    "kv_cache_allocated_bytes",
    "num_gpu_blocks",
)


@dataclass(frozen=True, slots=True)
class EngineJob:
    """`argv`: `vllm serve MODEL ...`, of which `python` runs the engine. `card_bytes`: the memory of the emulated card,
    None for the card itself."""

    python: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    vllm_version: str
    timeout_seconds: float
    log: Path
    folder: Path
    card_bytes: int | None = None


def boot_engine(job: EngineJob, progress: Progress) -> Outcome:
    """Run the engine to the end of its startup and read its books; nothing of it is left afterwards."""
    script = job.folder / "engine_probe.py"
    shutil.copyfile(Path(__file__).with_name("engine_probe.py"), script)
    answer = job.folder / "answer.json"
    command = [job.python, str(script), str(answer), *job.argv[1:]]
    started = time.monotonic()
    progress(f"starting the engine in {job.python} (log: {job.log})")
    lines: list[str] = []
    told: set[str] = set()
    with Supervised(command, {**job.env, **_IN_PROCESS}, job.log, Path.cwd()) as engine:
        outcome: Outcome | None = None
        while outcome is None:
            code = engine.exit_code()
            fresh = engine.new_lines()
            lines += fresh
            tell_milestones(fresh, told, progress)
            if code == 0 and answer.exists():
                outcome = _read(answer, job, lines)
            elif code is not None:
                outcome = ended(lines, code)
            elif time.monotonic() > started + job.timeout_seconds:
                engine.patience_seconds = HUNG_PATIENCE_SECONDS
                outcome = Outcome(
                    "timeout", Failure("timeout", f"not ready in time; its last line: {last_words(lines)}")
                )
            else:
                time.sleep(_POLL_SECONDS)
    log = partial_reading(lines, version_in(lines) or job.vllm_version)
    return replace(_with_log(outcome, log), seconds=time.monotonic() - started)


def _read(answer: Path, job: EngineJob, lines: list[str]) -> Outcome:
    try:
        found = json.loads(answer.read_text(encoding="utf-8"))
        ranks: list[dict[str, Any]] = found["ranks"]
        fullest = min(ranks, key=lambda rank: rank["available_kv_cache_bytes"] or 0)
        figures = {name: Figure(fullest[name]) for name in _RANK_TERMS if fullest.get(name) is not None}
        used = [(job.card_bytes or rank["total_memory_bytes"]) - rank["free_bytes"] for rank in ranks]
        for name in ("block_size", "capacity_tokens", "max_concurrency"):
            if found["config"].get(name) is not None:
                figures[name] = Figure(found["config"][name])
        version = str(found["vllm"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise OutsideError(f"the engine probe's answer cannot be read: {type(error).__name__}: {error}") from None
    figures["used_after_startup_bytes"] = Figure(max(used))
    note = () if version == job.vllm_version else (f"the engine is vLLM {version}, the plan is for {job.vllm_version}",)
    return Outcome("started", figures=figures, device_used_bytes=tuple(used), notes=note)


def _with_log(outcome: Outcome, log: Reading) -> Outcome:
    """The words of the log, and the figures that only the log has (the real size of the CUDA graphs)."""
    return replace(outcome, figures=log.figures | outcome.figures, words=log.words)
