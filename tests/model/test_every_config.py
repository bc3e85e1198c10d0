"""Every config that the repository carries gets an estimate, or is told which part of it is not supported."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError
from planner.memory.assess import assess
from planner.memory.result import Estimate
from planner.model.build import build_model
from planner.model.registry import ARCHITECTURES
from planner.model.spec import ModelFiles, ModelSpec
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_catalog import ModelCatalog, load_model_catalog
from planner.sources.model_folder import load_folder
from planner.values import Rejected, Rejection

DATA = Path(__file__).parent.parent / "data"
NOT_SERVED = {
    "JinaVLMForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "LocateAnythingForConditionalGeneration",
    "LogicsForConditionalGeneration",
    "FalconPerceptionForSegmentation",
}
"""Architectures of carried configs that vLLM 0.26.0's registry does not have (model_executor/models/registry.py)."""


@cache
def catalog() -> ModelCatalog:
    return load_model_catalog()


@cache
def small_configs() -> dict[str, ModelFiles]:
    found: dict[str, ModelFiles] = {}
    for file in ("small_configs.json", "hybrid_configs.json", "served_configs.json"):
        configs = json.loads((DATA / file).read_text())
        found |= {f"{file} {name}": ModelFiles(name=name, config=config) for name, config in configs.items()}
    return found


def carried() -> tuple[str, ...]:
    """Folders and small configs first; of the catalog what none of those has already."""
    folders = [f"folder {path.parent.name}" for path in sorted((DATA / "configs").glob("*/config.json"))]
    cases = [*folders, *(f"small {name}" for name in small_configs())]
    known = [files_of(case).config for case in cases]
    entries = (f"catalog {identity}" for identity in catalog().ids())
    return (*cases, *(entry for entry in entries if files_of(entry).config not in known))


def files_of(case: str) -> ModelFiles:
    kind, name = case.split(" ", 1)
    if kind == "folder":
        return load_folder(DATA / "configs" / name, name=name)
    if kind == "small":
        return small_configs()[name]
    found = catalog().find(name)
    assert found is not None
    return found


def built(files: ModelFiles) -> ModelSpec | UnsupportedError | Rejection:
    try:
        return build_model(files)
    except UnsupportedError as unsupported:
        return unsupported
    except Rejected as refused:
        return refused.rejection


def answer(model: ModelSpec, ranks: int) -> Estimate | UnsupportedError:
    """DeepSeek-V4 starts with an FP8 cache only."""
    args = EngineArgs(
        tensor_parallel_size=ranks,
        max_model_len=min(4096, model.derived_max_model_len),
        kv_cache_dtype="fp8" if model.architecture.startswith("DeepseekV4") else "auto",
    )
    try:
        return assess(model, parse_gpus(f"h200:{ranks}"), args, "0.26.0").estimate
    except UnsupportedError as unsupported:
        return unsupported


@pytest.mark.parametrize("case", carried())
def test_answer_is_an_estimate_or_names_the_part(case: str) -> None:
    model = built(files_of(case))
    if isinstance(model, UnsupportedError):
        assert model.part == "architecture"
        assert any(name in str(model) for name in NOT_SERVED)
        return
    if isinstance(model, Rejection):
        assert model.message.startswith(("Model architecture", "The configuration of this model"))
        return
    assert model.architecture in ARCHITECTURES
    held: list[int] = []
    for ranks in (1, 8):
        found = answer(model, ranks)
        if isinstance(found, UnsupportedError):
            assert found.part
            assert str(found)
        elif found.rejection is not None:
            assert found.verdict == "rejected"
            assert found.rejection.message
        else:
            held.append(check_started(found))
            if case.startswith("catalog"):
                break
    if len(held) == 2:
        assert held[0] / 8 <= held[1] <= held[0]


def check_started(found: Estimate) -> int:
    """What holds of every engine that starts; its parameter bytes."""
    ledger, cache, engine = found.per_gpu, found.kv_cache, found.engine
    assert ledger is not None
    assert cache is not None
    assert engine is not None
    assert 0 < ledger.parameter_bytes <= ledger.used_after_startup_bytes <= ledger.total_memory_bytes
    assert ledger.available_kv_cache_bytes >= cache.num_gpu_blocks * cache.bytes_per_block > 0
    assert cache.max_concurrency >= 1
    return ledger.parameter_bytes


def test_what_is_not_served_is_not_described() -> None:
    assert not NOT_SERVED & set(ARCHITECTURES)
