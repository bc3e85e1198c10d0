"""Pictures of one plan: every function takes what planner.report.rows makes and returns matplotlib Axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from planner.memory.assess import Assessment
from planner.report.rows import Row, StageLedger, stage_ledgers
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS, Term
from planner.report.theme import LIGHT, Theme, gib, gib_axis, new_axes, ramp, readable_on, styled, titled, tokens_label
from planner.units import format_bytes

_BARS: dict[str, tuple[Term, ...]] = {
    "engine plans": tuple(term for term in ENGINE_TERMS if term.color),
    "device holds": tuple(term for term in DEVICE_TERMS if term.color),
}
_SHORT = {
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
            return _empty(axes, "vLLM refuses before it takes any memory")
        total = gib(stages[0].bytes["total_memory_bytes"])
        span = max(total, *(_reach(stage) for stage in stages)) * 1.02
        axes.set_xlim(0, span)
        marks: list[tuple[float, str]] = []
        for index, stage in enumerate(stages):
            for line, (name, terms) in enumerate(_BARS.items()):
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
        name = _SHORT.get(term.field, term.label)
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
                bbox=_box(theme),
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
        axes.text(x, top, f"{text}  ", ha="right", va="center", fontsize=11, color=color, bbox=_box(theme), zorder=2)


def _box(theme: Theme) -> dict[str, object]:
    """Paper behind a label, so that lines do not run through it."""
    return {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0}


def load(rows: Sequence[Row], requested_bytes: int, theme: Theme = LIGHT) -> Axes:
    """Memory that the engine counts against max_model_len, a line for each concurrency, under the budget."""
    with styled(theme):
        axes = new_axes()
        titled(axes, "Memory against length and concurrency")
        if not rows:
            return _empty(axes, "no load to show")
        budget = gib(requested_bytes)
        top = 1.3 * budget
        lengths = sorted({_int(row, "max_model_len") for row in rows})
        concurrencies = sorted({_int(row, "concurrency") for row in rows})
        axes.set_xscale("log", base=2)
        axes.axhspan(budget, top, color=theme.limit, alpha=0.10, linewidth=0)
        axes.axhline(budget, color=theme.budget, linewidth=1.5, linestyle=(0, (4, 2)))
        axes.annotate(
            f"budget {budget:.2f} GiB",
            (lengths[0], budget),
            (6, 3),
            textcoords="offset points",
            fontsize=11,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5, "alpha": 0.7},
        )
        ends: list[tuple[float, float, str]] = []
        for concurrency, color in zip(concurrencies, ramp(theme, len(concurrencies)), strict=True):
            mine = [row for row in rows if row["concurrency"] == concurrency]
            points = [(_int(row, "max_model_len"), gib(_int(row, "engine_bytes"))) for row in mine]
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2.2, marker="o", markersize=4, clip_on=True)
            if points[-1][1] <= top:
                ends.append((points[-1][0], points[-1][1], f"{concurrency:,}"))
            else:
                _leaving_label(axes, points, top, f"{concurrency:,}", theme)
        _spread(axes, ends, 0.055 * top, theme)
        axes.set_ylim(0, top)
        axes.set_xlim(lengths[0], lengths[-1] * (1.05 if len(lengths) > 1 else 2))
        shown = lengths[:: max(1, len(lengths) // 7)]
        axes.set_xticks(shown, [tokens_label(length) for length in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("max_model_len, tokens of each request (number on a line: requests at once)")
        gib_axis(axes.yaxis)
        axes.grid(axis="y")
    return axes


def _leaving_label(axes: Axes, points: list[tuple[int, float]], top: float, text: str, theme: Theme) -> None:
    """Left of the place where a line leaves the picture; none for a line that is above it from the start."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 <= top < y1:
            x = x0 * (x1 / x0) ** ((top - y0) / (y1 - y0))
            axes.annotate(
                text, (x, top), (-11, -9), textcoords="offset points", fontsize=11, va="center", ha="right",
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1, "alpha": 0.8},
            )  # fmt: skip
            return


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
            return _empty(axes, "vLLM refuses before it takes any memory")
        places = range(0, -len(shown), -1)
        parameters = [gib(_int(row, "parameter_bytes")) for row in shown]
        others = [gib(_int(row, "other_bytes")) for row in shown]
        color = next(term.color for term in DEVICE_TERMS if term.field == "weights_memory_bytes")
        axes.barh(places, parameters, 0.7, color=color, label="parameters")
        if any(others):
            axes.barh(
                places, others, 0.7, left=parameters, facecolor=theme.paper, edgecolor=color, hatch="////",
                linewidth=1, label="buffers and workspaces",
            )  # fmt: skip
        widest = max(gib(_int(row, "bytes")) for row in shown)
        for place, row in zip(places, shown, strict=True):
            size = _int(row, "bytes")
            text = f"{gib(size):.3f}" if gib(size) >= 0.0005 else format_bytes(size)
            axes.text(gib(size) + 0.012 * widest, place, text, va="center", fontsize=11, bbox=_box(theme))
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


def variants(rows: Sequence[Row], theme: Theme = LIGHT, title: str = "") -> Axes:
    """What the device holds under each value of one flag, side by side, with the card's limit."""
    with styled(theme):
        axes = new_axes(max(8, 2.9 + 1.2 * len(rows)), 5.2)
        flag = str(rows[0]["flag"]) if rows else "flag"
        titled(axes, title or f"The same plan under other values of {flag}")
        if not rows:
            return _empty(axes, "no values to compare")
        totals = [_int(row, "total_memory_bytes") for row in rows if row["total_memory_bytes"] is not None]
        limit = gib(max(totals, default=0))
        used = set()
        for place, row in enumerate(rows):
            if row["total_memory_bytes"] is None:
                axes.text(place, 0.02 * limit, _refused(row), ha="center", va="bottom", fontsize=11, color=theme.limit)
                continue
            bottom = 0.0
            for term in _BARS["device holds"]:
                size = max(gib(_int(row, term.field)), 0.0)
                if size <= 0:
                    continue
                encoder = term.field == "vision_encoder_runtime_peak_bytes"
                label = _SHORT.get(term.field, term.label) if term.field not in used else None
                used.add(term.field)
                axes.bar(
                    place,
                    size,
                    0.66,
                    bottom=bottom,
                    color=term.color,
                    edgecolor=theme.paper,
                    linewidth=0.8,
                    label=label,
                    hatch="///" if encoder else None,
                )
                if size > 0.07 * limit:
                    axes.text(
                        place,
                        bottom + size / 2,
                        f"{size:.2f}",
                        ha="center",
                        va="center",
                        fontsize=11,
                        color=readable_on(term.color),
                    )
                bottom += size
            if row["verdict"] != "starts":
                axes.text(
                    place,
                    bottom + 0.01 * limit,
                    _refused(row),
                    ha="center",
                    va="bottom",
                    fontsize=11,
                    color=theme.limit,
                )
        if len(set(totals)) <= 1:
            axes.axhline(limit, color=theme.limit, linewidth=2, label=f"physical limit {limit:.2f}", zorder=1.5)
        else:
            _own_limits(axes, rows, theme)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        refused = any(row["verdict"] != "starts" and row["total_memory_bytes"] is not None for row in rows)
        axes.set_ylim(0, max(limit * 1.04, axes.get_ylim()[1] * (1.16 if refused else 1.0)))
        axes.set_xticks(range(len(rows)), [_ticked(row) for row in rows])
        starts = any(row["verdict"] == "starts" for row in rows)
        axes.set_xlabel(f"{flag}, with the tokens that the cache holds" if starts else flag)
        gib_axis(axes.yaxis)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=11, reverse=True)
    return axes


def _own_limits(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    """The limit of each plan's card over its bar."""
    label = "physical limit"
    for place, row in enumerate(rows):
        if row["total_memory_bytes"] is not None:
            height = gib(_int(row, "total_memory_bytes"))
            axes.plot([place - 0.45, place + 0.45], [height] * 2, color=theme.limit, linewidth=2, label=label)
            label = "_"


def _refused(row: Row) -> str:
    return "refused:\n" + str(row["bottleneck"]).replace("_", "\n")


def _ticked(row: Row) -> str:
    """The value, and under it about how many tokens the cache holds."""
    value = str(row["value"])
    value = f"{int(value):,}" if value.isdigit() else fill(value, 15)
    tokens = row["capacity_tokens"] if row["verdict"] == "starts" else None
    if not isinstance(tokens, int):
        return value
    about = (
        f"{tokens / 1e6:.2f} M" if tokens >= 10**6 else f"{tokens / 1e3:.0f} k" if tokens >= 10**4 else f"{tokens:,}"
    )
    return f"{value}\n{about} tokens"


def media(rows: Sequence[Row], theme: Theme = LIGHT) -> Axes:
    """The encoder's peak against the number of images in flight, a line for each size, under what the card has left."""
    with styled(theme):
        axes = new_axes()
        titled(axes, "Media: encoder memory of the fullest step")
        if not rows:
            return _empty(axes, "the model takes no images")
        free = gib(_int(rows[0], "device_free_bytes"))
        highest = max(gib(_int(row, "vision_encoder_runtime_peak_bytes")) for row in rows)
        sizes = list(dict.fromkeys((row["width_pixels"], row["height_pixels"]) for row in rows))
        axes.set_xscale("log", base=2)
        ends: list[tuple[float, float, str]] = []
        for size, color in zip(sizes, ramp(theme, len(sizes)), strict=True):
            mine = [row for row in rows if (row["width_pixels"], row["height_pixels"]) == size]
            points = [(_int(row, "items"), gib(_int(row, "vision_encoder_runtime_peak_bytes"))) for row in mine]
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2.2, marker="o", markersize=4)
            label = f"{size[0]} x {size[1]}\n{mine[0]['embeddings_per_item']:,} tokens"
            ends.append((points[-1][0], points[-1][1], label))
        top = max(highest, min(free, highest * 2)) * 1.15
        _spread(axes, ends, 0.125 * top, theme)
        if free <= 0:
            axes.text(
                1, top * 0.97, " nothing is left on the card", va="top", ha="left", fontsize=11, color=theme.limit
            )
        elif free < top:
            axes.axhline(free, color=theme.limit, linewidth=2)
            axes.annotate(
                f"left on the card {free:.2f} GiB",
                (1, free),
                (5, 3),
                textcoords="offset points",
                fontsize=11,
                color=theme.limit,
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )
        else:
            axes.text(
                1, top * 0.97, f"the card has {free:.2f} GiB left, above this picture", va="top", ha="left", fontsize=11
            )
        axes.set_ylim(0, top)
        items = sorted({_int(row, "items") for row in rows})
        axes.set_xlim(items[0], items[-1] * 1.1)
        axes.set_xticks(items, [str(item) for item in items])
        axes.xaxis.set_minor_locator(NullLocator())
        budget = _int(rows[0], "encoder_budget_tokens")
        axes.set_xlabel(f"images in flight (one step encodes at most {budget:,} tokens)")
        gib_axis(axes.yaxis)
        axes.grid(axis="y")
    return axes


def _spread(axes: Axes, ends: list[tuple[float, float, str]], least: float, theme: Theme) -> None:
    """Labels right of the lines' ends, at least `least` apart, as near to their lines as that allows."""
    ordered = sorted(ends, key=lambda end: end[1])
    groups: list[list[int]] = []
    for index in range(len(ordered)):
        groups.append([index])
        while len(groups) > 1 and _lowest(ordered, groups[-1], least) < _highest(ordered, groups[-2], least) + least:
            groups[-2:] = [groups[-2] + groups[-1]]
    for group in groups:
        first = _lowest(ordered, group, least)
        for step, index in enumerate(group):
            x, y, text = ordered[index]
            axes.annotate(
                text,
                (x, y),
                (1.03, max(first + step * least, least / 2)),
                textcoords=("axes fraction", "data"),
                fontsize=11,
                va="center",
                ha="left",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": theme.ink, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3},
            )


def _lowest(ends: Sequence[tuple[float, float, str]], group: Sequence[int], least: float) -> float:
    """The height of a group's first label: the group is centred on its lines' ends."""
    middle = sum(ends[index][1] for index in group) / len(group)
    return middle - least * (len(group) - 1) / 2


def _highest(ends: Sequence[tuple[float, float, str]], group: Sequence[int], least: float) -> float:
    return _lowest(ends, group, least) + least * (len(group) - 1)


def _empty(axes: Axes, text: str) -> Axes:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()
    return axes


def _int(row: Row, name: str) -> int:
    value = row[name]
    assert isinstance(value, int)
    return value


def _sum(rows: Sequence[Row], name: str) -> int:
    return sum(_int(row, name) for row in rows)
