"""Each picture against a small golden one, drawn from fixed rows so that no memory term moves it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from planner.memory.assess import Assessment
from planner.report import bar_figures, figures
from planner.report.compare_figure import differences
from planner.report.compare_figure import plans as plans_side_by_side
from planner.report.rows import StageLedger, breakdown_rows
from planner.report.selection_figure import cost_against_capacity
from planner.report.sweep_figure import heatmap
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS
from planner.report.theme import DARK, LIGHT, Theme, fonts, png, ramp, tokens_label
from planner.units import GIB
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "pictures"
SIZE = (300, 200)
DRAWN_WITH = (3, 11)
"""The release of matplotlib that drew the golden pictures: earlier ones set letters in other widths."""
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
            **WHO,
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
        {
            "model": "a/model",
            "gpu": gpu,
            "gpus_per_node": count,
            "nodes": 1,
            "fits": True,
            "capacity_requests": requests,
            "usd_per_hour": usd,
            "price_date": "undated" if gpu == "L20" else "2026-09-06",
        }
        for gpu, count, requests, usd in choices
    ]


def _compare_rows() -> list[dict[str, object]]:
    changes = {
        "B": ("weights_memory_bytes", -4.0, "kv_cache_allocated_bytes", 4.2),
        "C": ("peak_activation_bytes", 1.1),
    }
    rows: list[dict[str, object]] = [{"plan": "A", "term": name, "difference": None} for name in BYTES]
    for plan, change in changes.items():
        found = dict(zip(change[::2], change[1::2], strict=True))
        rows += [{"plan": plan, "term": name, "difference": round(found.get(name, 0) * GIB)} for name in BYTES]
    return rows


DRAWN: dict[str, Callable[[Theme], Axes]] = {
    "load": lambda theme: figures.load(_load(), 41 * GIB, theme),
    "breakdown": lambda theme: figures.breakdown(_breakdown(), theme),
    "variants": lambda theme: figures.variants(_variants(), theme),
    "media": lambda theme: figures.media(_media(), theme),
    "sweep": lambda theme: heatmap(_sweep(), theme),
    "select": lambda theme: cost_against_capacity(_select(), 32, theme),
    "compare_difference": lambda theme: differences(_compare_rows(), theme),
}


def _matches(name: str, picture: bytes, rewrite: bool) -> None:
    small = Image.open(BytesIO(picture)).convert("RGB").resize(SIZE, Image.Resampling.BOX)
    path: Path = GOLDEN / f"{name}.png"
    if rewrite:
        path.parent.mkdir(parents=True, exist_ok=True)
        small.save(path)
        return
    if matplotlib.__version_info__[:2] < DRAWN_WITH:
        pytest.skip(f"golden pictures are matplotlib {'.'.join(map(str, DRAWN_WITH))}'s")
    wanted = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    difference = np.abs(np.asarray(small, dtype=float) - wanted)
    assert difference.mean() < 1.5, f"{name} looks different: see it, then ./check tests tests/report --rewrite"


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_picture(name: str, theme: Theme, request: pytest.FixtureRequest) -> None:
    _matches(f"{name}_{theme.name}", png(DRAWN[name](theme), theme), request.config.getoption("--rewrite"))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_ledger_picture(
    theme: Theme, text_plan: Assessment, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(bar_figures, "stage_ledgers", lambda _: (StageLedger(0, "0-3", BYTES),))
    _matches(
        f"ledger_{theme.name}", png(figures.ledger(text_plan, theme), theme), request.config.getoption("--rewrite")
    )


def test_a_picture_is_the_same_bytes_every_time() -> None:
    assert png(heatmap(_sweep(), DARK), DARK) == png(heatmap(_sweep(), DARK), DARK)


def _texts(axes: Axes) -> list[tuple[str, Bbox]]:
    """Every text that is seen, with the pixels it covers."""
    figure = axes.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    # Ticks outside the limits exist and are not drawn.
    hidden = {
        id(tick.label1)
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [
        (text.get_text(), Text.get_window_extent(text, canvas.get_renderer()))
        for text in found
        if id(text) not in hidden
    ]


@pytest.mark.parametrize("name", [*DRAWN, "ledger", "ledger of stages", "layers", "ranks", "compare"])
def test_no_text_is_cut_or_covers_another(
    name: str, text_plan: Assessment, vision_plan: Assessment, staged_plan: Assessment
) -> None:
    plans = {"ledger": vision_plan, "ledger of stages": staged_plan}
    if name in plans:
        axes = figures.ledger(plans[name])
    elif name in ("layers", "ranks"):
        axes = figures.breakdown(breakdown_rows(staged_plan, name.removesuffix("s")))
    elif name == "compare":
        axes = plans_side_by_side([("A", text_plan.estimate), ("version=0.33.0", vision_plan.estimate)])
    else:
        axes = DRAWN[name](LIGHT)
    texts = _texts(axes)
    assert len(texts) > 5
    paper = axes.figure.bbox
    for words, box in texts:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= paper.x1 + 1 and box.y1 <= paper.y1 + 1
        assert inside, f"{words!r} is cut"
    for (one, first), (other, second) in combinations(texts, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert wide < 2 or high < 2, f"{one!r} covers {other!r}"


def test_a_font_with_chinese_letters_is_used_where_there_is_one() -> None:
    names = [{**row, "model": "模型/千问"} for row in _sweep()]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _texts(heatmap(names))
    missing = [warning for warning in seen if "missing from" in str(warning.message)]
    assert bool(missing) == (len(fonts()) == 1), "squares instead of letters"
    assert png(heatmap(names), LIGHT).startswith(b"\x89PNG")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_letters_are_read_on_their_paper(theme: Theme) -> None:
    """WCAG's contrast for text, 4.5 to 1; lines of a series 2 to 1, as they are also labelled."""
    assert _contrast(theme.ink, theme.paper) > 7
    assert _contrast(theme.limit, theme.paper) > 4.5
    assert min(_contrast(color, theme.paper) for color in ramp(theme, 6)) > 1.6
    assert len(set(ramp(theme, 6))) == 6


def _contrast(one: str, other: str) -> float:
    def light(color: str) -> float:
        parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


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
    assert [tokens_label(tokens) for tokens in (512, 8192, 20000, 131072, 128000)] == [
        "512",
        "8K",
        "20,000",
        "128K",
        "128,000",
    ]
