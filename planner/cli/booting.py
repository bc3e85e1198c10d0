"""From a request to a booted engine: the folder, the command, the ballast, and what was read back."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner import api
from planner.cli.launched import plain_argv
from planner.errors import InputError, OutsideError
from planner.memory.assess import Assessment
from planner.memory.result import Estimate
from planner.serve.command import serve_argv

if TYPE_CHECKING:
    from planner.verify.outcome import Outcome
    from planner.verify.requests import Workload


@dataclass(frozen=True, slots=True)
class BootSettings:
    """How to boot. `emulate`: the request's GPUs are smaller ones that this machine's stand in for. `python` None: that
    of the `vllm` executable. `log` None: the log goes with the temporary folder."""

    boot: str
    dummy: bool
    emulate: bool
    vllm: str
    python: str | None
    image_size: tuple[int, int]
    requests: bool
    timeout_seconds: float
    log: Path | None


@dataclass(frozen=True, slots=True)
class _Launch:
    """What is booted, and the assessment of exactly that. `card_bytes`: memory of the emulated card."""

    assessment: Assessment
    argv: list[str]
    env: dict[str, str]
    card_bytes: int | None = None


def boot_and_read(request: api.Request, settings: BootSettings) -> tuple[Estimate, Outcome, tuple[str, ...]]:
    """Boot the request; the estimate of what was booted, the outcome, and notes on how it was done."""
    notes: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vplan-")))
        booted = _dummy(request, folder, notes) if settings.dummy else request
        if settings.emulate:
            launch = stack.enter_context(_emulated(booted, notes))
        else:
            launch = _as_planned(booted)
            notes += _other_card(request)
        if settings.dummy:
            launch.argv.extend(["--load-format", "dummy"])
        log = (settings.log or folder / "engine.log").absolute()
        outcome = _boot(launch, settings, request.version, log, folder)
    estimate = launch.assessment.estimate.model_copy(update={"model": request.model, "gpus": request.gpus})
    return estimate, outcome, (*notes, *outcome.notes)


def _dummy(request: api.Request, folder: Path, notes: list[str]) -> api.Request:
    from planner.verify.standin import dummy_folder

    model = folder / "model"
    model.mkdir()
    made = dummy_folder(api.load_files(request), model)
    notes.append("dummy weights" + (f", with a stand-in {' and '.join(made)}" if made else ""))
    return request.model_copy(update={"model": str(model)})


def _environment(request: api.Request) -> dict[str, str]:
    return {**os.environ, **dict(request.args.env)}


def _as_planned(request: api.Request) -> _Launch:
    assessment = api.estimate(request)
    if assessment.config is None:
        return _Launch(assessment, plain_argv(request), _environment(request))
    argv = serve_argv(request.model, request.args, assessment.config, request.extra_argv)
    return _Launch(assessment, argv, _environment(request))


@contextmanager
def _emulated(request: api.Request, notes: list[str]) -> Iterator[_Launch]:
    """The plan's command with the small card's budget spelt for this card, while ballast holds the difference.

    Every default that depends on the card is made explicit first: dtype, lengths and batch sizes.
    """
    from planner.verify.emulate import PROVES, PROVES_NOT, Ballast, utilization_for, with_option

    planned = api.estimate(request)
    config, deployment = planned.config, planned.deployment
    if config is None or deployment is None:
        assert planned.estimate.rejection is not None
        raise InputError(
            f"{request.gpus} refuses the plan, so it never gets to memory: {planned.estimate.rejection.message}"
        )
    card = deployment.gpus.gpu
    here = api.load_gpus(request.model_copy(update={"gpus": "local"}))
    explicit = {
        "dtype": config.dtype, "max_model_len": config.max_model_len, "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "gpu_memory_utilization": config.gpu_memory_utilization,
    }  # fmt: skip
    emulated = request.model_copy(
        update={
            "gpus": f"{here.gpu.name}:{config.world_size}@{card.total_memory_bytes}",
            "args": request.args.model_copy(update=explicit),
        }
    )
    launch = _as_planned(emulated)
    if launch.assessment.estimate.per_gpu is None:
        assert launch.assessment.estimate.rejection is not None
        raise InputError(f"{here.gpu.name} refuses the plan: {launch.assessment.estimate.rejection.message}")
    requested = launch.assessment.estimate.per_gpu.requested_memory_bytes
    notes.append(
        f"{here.gpu.name} with the memory of {card.name} ({card.total_memory_bytes} bytes) and ballast in the rest"
    )
    notes += [f"proves {PROVES}", f"does not prove {PROVES_NOT}"]
    with Ballast(card.total_memory_bytes, config.world_size, launch.env) as ballast:
        ratio = utilization_for(requested, min(ballast.totals))
        argv = with_option(launch.argv, "--gpu-memory-utilization", repr(ratio))
        yield _Launch(launch.assessment, argv, launch.env, card.total_memory_bytes)


def _other_card(request: api.Request) -> list[str]:
    """A note where the plan is for another card than the one at hand."""
    if request.gpus == "local":
        return []
    try:
        here = api.load_gpus(request.model_copy(update={"gpus": "local"})).gpu.name
    except OutsideError:
        return []
    planned = api.load_gpus(request).gpu.name
    return [] if planned == here else [f"the plan is for {planned}, this machine has {here}: see --emulate"]


def _boot(launch: _Launch, settings: BootSettings, vllm_version: str, log: Path, folder: Path) -> Outcome:
    if settings.boot == "engine":
        from planner.verify.engine_boot import EngineJob, boot_engine

        job = EngineJob(
            python=settings.python or python_of(settings.vllm), argv=tuple(launch.argv), env=launch.env, log=log,
            folder=folder, vllm_version=vllm_version, timeout_seconds=settings.timeout_seconds,
            card_bytes=launch.card_bytes,
        )  # fmt: skip
        return boot_engine(job, _progress)
    from planner.verify.boot import ServerJob, boot_server

    executable = shutil.which(settings.vllm)
    if executable is None:
        raise OutsideError(f"there is no executable {settings.vllm!r}: install vLLM, or give --vllm PATH")
    server = ServerJob(
        argv=(executable, *launch.argv[1:]), env=launch.env, vllm_version=vllm_version, log=log,
        workload=_workload(launch, settings), timeout_seconds=settings.timeout_seconds,
    )  # fmt: skip
    return boot_server(server, _progress)


def _workload(launch: _Launch, settings: BootSettings) -> Workload | None:
    """What the requests are to be; images only where the command itself limits them (vLLM's own limit is 999)."""
    from planner.verify.requests import Workload

    config = launch.assessment.config
    if config is None or not settings.requests:
        return None
    limited = "--limit-mm-per-prompt" in launch.argv
    width, height = settings.image_size
    return Workload(
        max_model_len=config.max_model_len, max_num_seqs=config.max_num_seqs, image_width=width, image_height=height,
        images=dict(config.mm_limits).get("image", 0) if limited else 0,
    )  # fmt: skip


def python_of(executable: str) -> str:
    """The interpreter in the first line of the vllm script; this one where there is no such script."""
    path = shutil.which(executable)
    if path is None:
        return sys.executable
    with Path(path).open("rb") as file:
        first = file.readline(512)
    words = first.decode("utf-8", "replace").strip().removeprefix("#!").split()
    if not first.startswith(b"#!") or not words or "python" not in words[-1]:
        return sys.executable
    return words[-1] if words[0].endswith("/env") else words[0]


def _progress(text: str) -> None:
    print(f"vplan: {text}", file=sys.stderr, flush=True)
