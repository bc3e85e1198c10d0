"""Programs as text: each tensor that a run of the engine allocates, with its size, and where it is freed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.memory.program import Event, LiveTensor, Program
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.sources.draft import attach_draft
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_folder import load_folder

TESTS = Path(__file__).resolve().parent.parent
DATA, GOLDEN = TESTS / "data", TESTS / "golden" / "passes"
SIZES: dict[str, Any] = {"max_model_len": 4096, "max_num_batched_tokens": 2048, "max_num_seqs": 64}


_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": 32000,
    "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 4096, "rope_theta": 10000.0,
}  # fmt: skip
MADE = {
    "llama": _LLAMA,
    "head": _LLAMA | {"num_hidden_layers": 1},
    "head of other words": _LLAMA | {"num_hidden_layers": 1, "draft_vocab_size": 8000},
    "small llama": _LLAMA | {"num_hidden_layers": 2},
}


@cache
def files_of(source: str) -> ModelFiles:
    """A folder of tests/data/configs, "FILE NAME" for a config of another file there, or one of `MADE`."""
    if source in MADE:
        return ModelFiles(name=source, config=MADE[source])
    file, _, name = source.rpartition(" ")
    if not file:
        return load_folder(DATA / "configs" / name, name=name)
    loaded = json.loads((DATA / file).read_text())
    return ModelFiles(name=name, config=loaded["configs"][name] if "configs" in loaded else loaded[name])


@cache
def model_of(source: str, speculation: str | None = None) -> ModelSpec:
    """`speculation`: --speculative-config, its "model" a source too."""
    files = files_of(source)
    model = build_model(files, trust_remote_code=True)
    return model if speculation is None else attach_draft(model, files, speculation, files_of)


def set_up(
    source: str, gpus: str = "h200:1", version: str = "0.26.0", stage: int = 0, **flags: Any
) -> tuple[ModelSpec, RankShare, EngineConfig]:
    """The model, one rank of a stage, and the configuration that the flags lead to."""
    model = model_of(source, flags.get("speculative_config"))
    config = resolve(model, parse_gpus(gpus).gpu, EngineArgs(**{"trust_remote_code": True, **SIZES, **flags}), version)
    return model, shard(model, config, stage), config


def size(tensor: LiveTensor) -> str:
    """Bytes for each token, for each sampled row, and fixed ones."""
    parts = (
        (tensor.bytes_per_token, " a token"),
        (tensor.bytes_per_seq, " a row"),
        (tensor.constant_bytes, " fixed"),
    )
    return ", ".join(f"{count:,}{unit}" for count, unit in parts if count) or "0"


def tensor_lines(tensors: Iterable[LiveTensor]) -> list[str]:
    return [f"  {tensor.name}: {size(tensor)}" for tensor in tensors]


def program_lines(program: Program, last_layer: int = 1000) -> list[str]:
    """The events under the names of their stages; a layer that does what an earlier one did is named after it, and
    those after `last_layer` are left out."""
    lines: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for stage, body in _stages(program):
        if stage.startswith("layer ") and int(stage.split()[1].rstrip(":")) > last_layer:
            continue
        same = seen.setdefault(tuple(body), stage)
        lines += [stage, *body] if same == stage else [f"{stage}: as {same}"]
    return lines


def _stages(program: Program) -> Sequence[tuple[str, list[str]]]:
    names: dict[int, str] = {}
    found: list[tuple[str, list[str]]] = []
    for event in program.flat():
        if not found or found[-1][0] != event.stage:
            found.append((event.stage, []))
        body = found[-1][1]
        if event.kind == "free":
            name = names.pop(event.handle)
            if body and body[-1].startswith("  free "):
                body[-1] += f" | {name}"
            else:
                body.append(f"  free {name}")
            continue
        if event.kind == "alloc":
            names[event.handle] = event.tensor.name
        body.append(_line(event))
    if names:
        found.append(("alive at the end", [f"  {name}" for name in names.values()]))
    return found


def _line(event: Event) -> str:
    verb = "" if event.kind == "alloc" else f"{event.kind} "
    return f"  {verb}{event.tensor.name}: {size(event.tensor)}" if event.tensor.name else f"  {verb}".rstrip()


def check_text(name: str, lines: list[str], request: pytest.FixtureRequest) -> None:
    """Compare with a file of tests/golden/passes, or write it there with `pytest --rewrite`."""
    path = GOLDEN / f"{re.sub('[^a-z0-9.-]+', '_', name.lower())}.txt"
    text = "\n".join(lines) + "\n"
    if request.config.getoption("--rewrite"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.read_text(encoding="utf-8") == text, f"{path.name} changed: ./check tests --rewrite, read the diff"
