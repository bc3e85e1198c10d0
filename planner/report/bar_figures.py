"""Bars: both ledgers of a plan, and its weights in parts."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from planner.memory.assess import Assessment
from planner.report.rows import Row, StageLedger, int_of, stage_ledgers
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS, Term
from planner.report.theme import LIGHT, Theme, box, empty, gib, gib_axis, new_axes, readable_on, styled, titled
from planner.units import format_bytes

BARS: dict[str, tuple[Term, ...]] = {
    "engine plans": tuple(term for term in ENGINE_TERMS if term.color),
    "device holds": tuple(term for term in DEVICE_TERMS if term.color),
}
SHORT = {
    "cuda_context_bytes": "CUDA",
    "non_torch_bytes": "non-torch",
    "runner_state_bytes": "runner state",
    "available_kv_cache_bytes": "KV cache",
    "cuda_graph_estimate_bytes": "graphs",
    "cuda_graph_actual_bytes": "graphs",
    "allocator_retained_bytes": "allocator",
    "vision_encoder_runtime_peak_bytes": "encoder",
    "peak_activation_bytes": "activation",
}

_LETTER = 0.0115
"""Width of a letter of 11 points, as a share of the ledger picture's axis."""


def ledger(assessment: Assessment, theme: Theme = LIGHT) -> Axes:
    """Where the GPU goes: both ledgers of each stage's ranks as stacked bars, with the budget and the card's limit."""
    stages = stage_ledgers(assessment)
    with styled(theme):
        axes = new_axes(8, 2.3 + 2.2 * max(len(stages), 1))
        estimate = assessment.estimate
        titled(axes, f"Where the GPU goes: {estimate.model}, {estimate.gpus}")
        if not stages:
            return empty(axes, "vLLM refuses before it takes any memory")
        total = gib(stages[0].bytes["total_memory_bytes"])
        span = max(total, *(_reach(stage) for stage in stages)) * 1.02
        axes.set_xlim(0, span)
        marks: list[tuple[float, str]] = []
        for index, stage in enumerate(stages):
            for line, (name, terms) in enumerate(BARS.items()):
                height = -(index * 3.0 + line * 1.4)
                _bar(axes, stage, terms, height, span, theme)
                marks.append((height, name if len(stages) == 1 else f"ranks {stage.ranks}\n{name}"))
        axes.set_yticks([mark[0] for mark in marks], [mark[1] for mark in marks])
        axes.tick_params(axis="y", length=0)
        bottom = marks[-1][0] - 1.0
        axes.set_ylim(bottom, 1.1)
        _limits(axes, gib(stages[0].bytes["requested_memory_bytes"]), total, bottom, theme)
        gib_axis(axes.xaxis)
        axes.spines["left"].set_visible(False)
    return axes


def _reach(stage: StageLedger) -> float:
    return gib(stage.bytes["used_after_startup_bytes"] + stage.bytes["vision_encoder_runtime_peak_bytes"])


def _bar(axes: Axes, stage: StageLedger, terms: Sequence[Term], height: float, span: float, theme: Theme) -> None:
    left = 0.0
    small: list[tuple[float, str]] = []
    for term in terms:
        size = max(gib(stage.bytes[term.field]), 0.0)
        if not size:
            continue
        hatch = "///" if term.field == "vision_encoder_runtime_peak_bytes" else None
        axes.barh(height, size, 0.62, left=left, color=term.color, edgecolor=theme.paper, linewidth=0.8, hatch=hatch)
        name = SHORT.get(term.field, term.label)
        if size > (_LETTER * max(len(name), 5) + 0.012) * span and not hatch:
            axes.text(
                left + size / 2,
                height,
                f"{name}\n{size:.2f}",
                ha="center",
                va="center",
                fontsize=11,
                color=readable_on(term.color),
                bbox={"facecolor": term.color, "edgecolor": "none", "pad": 1.0},
                zorder=4,
            )
        elif size >= 0.005:
            small.append((left + size / 2, f"{name} {size:.2f}"))
        left += size
    _callouts(axes, small, height, span, theme)


def _callouts(axes: Axes, small: list[tuple[float, str]], height: float, span: float, theme: Theme) -> None:
    """Labels of narrow parts below the bar: in one row where they have room, else in two by turns."""
    widths = [_LETTER * span * len(text) for _, text in small]
    rows = 1 if sum(widths) + 0.02 * span * len(widths) < span else 2
    for row in range(rows):
        mine = list(range(row, len(small), rows))
        starts = _apart([small[index][0] for index in mine], [widths[index] for index in mine], span)
        for index, start in zip(mine, starts, strict=True):
            x, text = small[index]
            axes.annotate(
                text,
                (x, height - 0.31),
                (start + widths[index] / 2, height - 0.54 - 0.3 * row),
                ha="center",
                va="center",
                fontsize=11,
                bbox=box(theme),
                arrowprops={"arrowstyle": "-", "color": theme.ink, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
                zorder=4 - 0.5 * row,
            )


def _apart(centres: Sequence[float], widths: Sequence[float], span: float) -> list[float]:
    """Left ends of labels near their centres, from 0 to span, none over another."""
    gap, edge = 0.02 * span, 0.0
    starts: list[float] = []
    for centre, width in zip(centres, widths, strict=True):
        starts.append(max(centre - width / 2, edge))
        edge = starts[-1] + width + gap
    limit = span
    for index in reversed(range(len(starts))):
        starts[index] = min(starts[index], limit - widths[index])
        limit = starts[index] - gap
    return starts


def _limits(axes: Axes, budget: float, total: float, bottom: float, theme: Theme) -> None:
    """Both lines up to their labels, the card's above the budget's."""
    for x, top, text, color, width, style in (
        (total, 0.86, f"physical limit {total:.2f} GiB", theme.limit, 2.0, "-"),
        (budget, 0.48, f"budget {budget:.2f} GiB", theme.budget, 1.5, (0, (4, 2))),
    ):
        axes.plot([x, x], [bottom, top + 0.14], color=color, linewidth=width, linestyle=style, zorder=3)
        axes.text(x, top, f"{text}  ", ha="right", va="center", fontsize=11, color=color, bbox=box(theme), zorder=2)


def breakdown(rows: Sequence[Row], theme: Theme = LIGHT, most: int = 14) -> Axes:
    """The weights' parts as bars, the largest first, or in order for layers and ranks; the rest summed."""
    with styled(theme):
        by = str(rows[0]["by"]) if rows else "part"
        shown, rest = _chosen(rows, by, most)
        if len(rest) == 1:
            shown, rest = [*shown, *rest], []
        if rest:
            names = ("parameter_bytes", "other_bytes", "bytes")
            shown = [*shown, {"part": f"{len(rest)} others", **{name: _sum(rest, name) for name in names}}]
        axes = new_axes(8, 1.7 + 0.34 * max(len(shown), 2))
        titled(axes, f"Weights by {by}")
        if not rows:
            return empty(axes, "vLLM refuses before it takes any memory")
        places = range(0, -len(shown), -1)
        parameters = [gib(int_of(row, "parameter_bytes")) for row in shown]
        others = [gib(int_of(row, "other_bytes")) for row in shown]
        color = next(term.color for term in DEVICE_TERMS if term.field == "weights_memory_bytes")
        axes.barh(places, parameters, 0.7, color=color, label="parameters")
        if any(others):
            axes.barh(
                places, others, 0.7, left=parameters, facecolor=theme.paper, edgecolor=color, hatch="////",
                linewidth=1, label="buffers and workspaces",
            )  # fmt: skip
        widest = max(gib(int_of(row, "bytes")) for row in shown)
        for place, row in zip(places, shown, strict=True):
            size = int_of(row, "bytes")
            text = f"{gib(size):.3f}" if gib(size) >= 0.0005 else format_bytes(size)
            axes.text(gib(size) + 0.012 * widest, place, text, va="center", fontsize=11, bbox=box(theme))
        axes.set_yticks(list(places), [_shortened(str(row["part"])) for row in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, widest * 1.15)
        axes.set_ylim(-len(shown) + 0.4, 0.6)
        gib_axis(axes.xaxis)
        axes.grid(axis="x")
        if any(others):
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2, fontsize=11, frameon=False
            )
    return axes


def _chosen(rows: Sequence[Row], by: str, most: int) -> tuple[list[Row], list[Row]]:
    """Layers of equal size are one bar."""
    if by != "layer":
        return list(rows[:most]), list(rows[most:])
    runs: list[list[Row]] = []
    for row in rows:
        same = runs and str(row["part"]).startswith("layer ") and str(runs[-1][0]["part"]).startswith("layer ")
        if same and runs[-1][0]["bytes"] == row["bytes"]:
            runs[-1].append(row)
        else:
            runs.append([row])
    merged: list[Row] = []
    for run in runs:
        first, last = run[0], run[-1]
        span = (
            f"layers {str(first['part']).removeprefix('layer ')} to {str(last['part']).removeprefix('layer ')}, each"
            if len(run) > 1
            else str(first["part"])
        )
        merged.append({**first, "part": span})
    return merged[:most], merged[most:]


def _shortened(text: str, most: int = 34) -> str:
    """A long module path without its first names."""
    while len(text) > most and "." in text:
        text = "…" + text.removeprefix("…").partition(".")[2]
    return text


def _sum(rows: Sequence[Row], name: str) -> int:
    return sum(int_of(row, name) for row in rows)
