"""Each picture against a small golden one, drawn from fixed rows so that no memory term moves it."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from planner.memory.assess import Assessment
from planner.report import figures
from planner.report.rows import StageLedger
from planner.report.selection_figure import cost_against_capacity
from planner.report.sweep_figure import heatmap
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS
from planner.report.theme import DARK, LIGHT, Theme, png, tokens_label
from planner.units import GIB
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "pictures"
SIZE = (120, 80)
WHO = {"model": "a/model", "gpus": "l20:4", "vllm_version": "0.26.0"}
LEDGER = {
    "total_memory_bytes": 44.3,
    "requested_memory_bytes": 40.8,
    "weights_memory_bytes": 10.2,
    "peak_activation_bytes": 0.6,
    "non_torch_bytes": 0.1,
    "cuda_graph_estimate_bytes": 0.3,
    "also_counted_bytes": 0.0,
    "available_kv_cache_bytes": 29.6,
    "cuda_context_bytes": 1.5,
    "runner_state_bytes": 0.2,
    "kv_cache_allocated_bytes": 29.6,
    "cuda_graph_actual_bytes": 0.8,
    "allocator_retained_bytes": 0.7,
    "used_after_startup_bytes": 43.1,
    "vision_encoder_runtime_peak_bytes": 1.9,
    "parameter_bytes": 10.0,
}
BYTES = {name: round(size * GIB) for name, size in LEDGER.items()}


def _load() -> list[dict[str, object]]:
    return [
        {**WHO, "max_model_len": length, "concurrency": count, "engine_bytes": 11 * GIB + length * count * 81920}
        for count in (1, 16, 64)
        for length in (1024, 4096, 16384, 65536)
    ]


def _breakdown() -> list[dict[str, object]]:
    parts = [("mlp.gate_up_proj", 5.0, 0.0), ("self_attn.qkv_proj", 1.2, 0.1), ("rotary_emb", 0.0, 0.3)]
    return [
        {
            "by": "module",
            "part": name,
            "parameter_bytes": round(one * GIB),
            "other_bytes": round(two * GIB),
            "bytes": round((one + two) * GIB),
        }
        for name, one, two in parts
    ]


def _variants() -> list[dict[str, object]]:
    starts = {
        **WHO,
        "flag": "dtype",
        "value": "auto",
        "verdict": "starts",
        "bottleneck": "",
        **BYTES,
        "capacity_tokens": 380000,
    }
    refused = {
        **starts,
        "value": "bfloat16",
        "verdict": "rejected",
        "bottleneck": "dtype_capability",
        **dict.fromkeys(BYTES),
    }
    return [starts, {**starts, "value": "kv:fp8", "capacity_tokens": 760000}, refused]


def _media() -> list[dict[str, object]]:
    return [
        {
            "width_pixels": side,
            "height_pixels": side,
            "items": count,
            "embeddings_per_item": side * side // 784,
            "encoder_budget_tokens": 16384,
            "vision_encoder_runtime_peak_bytes": min(count * side * side * 90, GIB),
            "device_free_bytes": GIB // 2,
        }
        for side in (512, 1024, 2048)
        for count in (1, 2, 4, 8, 16)
    ]


def _sweep() -> list[dict[str, object]]:
    return [
        {
            "x_flag": "max_model_len",
            "x_value": str(4096 * x),
            "y_flag": "max_num_seqs",
            "y_value": str(8 * y),
            "fits_with_media": x < 3,
            "verdict": "starts" if x + y < 5 else "rejected",
            "bottleneck": "kv_cache",
            "max_concurrency": 90.0 / x - y,
        }
        for y in (1, 2, 3)
        for x in (1, 2, 3, 4)
    ]


def _select() -> list[dict[str, object]]:
    choices = [
        ("L20", 8, 50, 16.0),
        ("A100", 4, 46, 14.7),
        ("H100", 8, 100, 55.0),
        ("L4", 16, 34, 26.7),
        ("H200", 8, 190, 128.0),
    ]
    return [
        {"gpu": gpu, "gpus_per_node": count, "fits": True, "capacity_requests": requests, "usd_per_hour": usd}
        for gpu, count, requests, usd in choices
    ]


DRAWN: dict[str, Callable[[Theme], Axes]] = {
    "load": lambda theme: figures.load(_load(), 41 * GIB, theme),
    "breakdown": lambda theme: figures.breakdown(_breakdown(), theme),
    "variants": lambda theme: figures.variants(_variants(), theme),
    "media": lambda theme: figures.media(_media(), theme),
    "sweep": lambda theme: heatmap(_sweep(), theme),
    "select": lambda theme: cost_against_capacity(_select(), 32, theme),
}


def _compare(name: str, picture: bytes, rewrite: bool) -> None:
    small = Image.open(BytesIO(picture)).convert("RGB").resize(SIZE, Image.Resampling.BOX)
    path: Path = GOLDEN / f"{name}.png"
    if rewrite:
        path.parent.mkdir(parents=True, exist_ok=True)
        small.save(path)
        return
    wanted = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    difference = np.abs(np.asarray(small, dtype=float) - wanted)
    assert difference.mean() < 4, f"{name} looks different: see it, then ./check tests tests/report --rewrite"


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_picture(name: str, theme: Theme, request: pytest.FixtureRequest) -> None:
    _compare(f"{name}_{theme.name}", png(DRAWN[name](theme), theme), request.config.getoption("--rewrite"))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_ledger_picture(
    theme: Theme, text_plan: Assessment, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(figures, "stage_ledgers", lambda _: (StageLedger(0, "0-3", BYTES),))
    _compare(
        f"ledger_{theme.name}", png(figures.ledger(text_plan, theme), theme), request.config.getoption("--rewrite")
    )


def test_a_picture_is_the_same_bytes_every_time() -> None:
    assert png(heatmap(_sweep(), DARK), DARK) == png(heatmap(_sweep(), DARK), DARK)


def test_the_limits_are_drawn_where_they_are(text_plan: Assessment) -> None:
    axes = figures.ledger(text_plan)
    per_gpu = text_plan.estimate.per_gpu
    assert per_gpu is not None
    drawn = {round(float(line.get_xdata()[0]), 6) for line in axes.lines}
    assert drawn == {round(size / GIB, 6) for size in (per_gpu.total_memory_bytes, per_gpu.requested_memory_bytes)}


def test_bars_are_as_long_as_the_ledger(text_plan: Assessment) -> None:
    per_gpu = text_plan.estimate.per_gpu
    assert per_gpu is not None
    widths = sum(bar.get_width() for bar in figures.ledger(text_plan).patches) * GIB
    terms = [term.field for term in (*ENGINE_TERMS, *DEVICE_TERMS) if term.color]
    assert widths == pytest.approx(sum(max(getattr(per_gpu, field), 0) for field in terms))


def test_a_term_has_one_colour() -> None:
    colours: dict[str, set[str]] = {}
    for term in (*ENGINE_TERMS, *DEVICE_TERMS):
        if term.color:
            colours.setdefault(term.field, set()).add(term.color)
    assert all(len(found) == 1 for found in colours.values())


def test_lengths_are_read_as_people_write_them() -> None:
    assert [tokens_label(tokens) for tokens in (512, 8192, 20000, 131072)] == ["512", "8K", "20,000", "128K"]
