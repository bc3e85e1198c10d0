"""Pictures of one plan: every function takes what planner.report.rows makes and returns matplotlib Axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from planner.memory.assess import Assessment
from planner.report.rows import Row, StageLedger, stage_ledgers
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS, Term
from planner.report.theme import LIGHT, SERIES, Theme, gib, gib_axis, new_axes, readable_on, styled, tokens_label

_BARS: dict[str, tuple[Term, ...]] = {
    "engine plans": tuple(term for term in ENGINE_TERMS if term.color),
    "device holds": tuple(term for term in DEVICE_TERMS if term.color),
}
_SHORT = {
    "cuda_context_bytes": "CUDA, NCCL",
    "non_torch_bytes": "non-torch",
    "runner_state_bytes": "runner state",
    "available_kv_cache_bytes": "KV cache",
    "cuda_graph_estimate_bytes": "graphs",
    "cuda_graph_actual_bytes": "graphs",
    "allocator_retained_bytes": "allocator",
    "vision_encoder_runtime_peak_bytes": "encoder",
    "peak_activation_bytes": "activation",
}


def ledger(assessment: Assessment, theme: Theme = LIGHT) -> Axes:
    """Where the GPU goes: both ledgers of each stage's ranks as stacked bars, with the budget and the card's limit."""
    stages = stage_ledgers(assessment)
    with styled(theme):
        axes = new_axes(9, 2.2 + 2.1 * max(len(stages), 1))
        estimate = assessment.estimate
        axes.set_title(f"Where the GPU goes: {estimate.model}, {estimate.gpus}")
        if not stages:
            return _empty(axes, "vLLM refuses before it takes any memory")
        total = gib(stages[0].bytes["total_memory_bytes"])
        span = max(total, *(_reach(stage) for stage in stages))
        axes.set_xlim(0, span * 1.02)
        marks: list[tuple[float, str]] = []
        for index, stage in enumerate(stages):
            for line, (name, terms) in enumerate(_BARS.items()):
                height = -(index * 2.6 + line * 1.2)
                _bar(axes, stage, terms, height, span, theme, labels=len(stages) <= 2)
                marks.append((height, name if len(stages) == 1 else f"ranks {stage.ranks}\n{name}"))
        axes.set_yticks([mark[0] for mark in marks], [mark[1] for mark in marks])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(marks[-1][0] - 0.85, 1.0)
        _limits(axes, gib(stages[0].bytes["requested_memory_bytes"]), total, theme)
        gib_axis(axes.xaxis)
        axes.spines["left"].set_visible(False)
    return axes


def _reach(stage: StageLedger) -> float:
    return gib(stage.bytes["used_after_startup_bytes"] + stage.bytes["vision_encoder_runtime_peak_bytes"])


def _bar(
    axes: Axes, stage: StageLedger, terms: Sequence[Term], height: float, span: float, theme: Theme, *, labels: bool
) -> None:
    left = 0.0
    small: list[tuple[float, str]] = []
    for term in terms:
        size = max(gib(stage.bytes[term.field]), 0.0)
        if not size:
            continue
        encoder = term.field == "vision_encoder_runtime_peak_bytes"
        axes.barh(
            height,
            size,
            0.62,
            left=left,
            color=term.color,
            edgecolor=theme.paper,
            linewidth=0.8,
            hatch="///" if encoder else None,
        )
        name = _SHORT.get(term.field, term.label)
        if size > 0.11 * span and not encoder:
            axes.text(
                left + size / 2,
                height,
                f"{name}\n{size:.2f}",
                ha="center",
                va="center",
                fontsize=11,
                color=readable_on(term.color),
            )
        elif size >= 0.005:
            small.append((left + size / 2, f"{name} {size:.2f}"))
        left += size
    if labels:
        _callouts(axes, small, height, span, theme)


def _callouts(axes: Axes, small: list[tuple[float, str]], height: float, span: float, theme: Theme) -> None:
    """Labels of narrow parts below the bar, pushed apart where they would touch."""
    widths = [0.0125 * span * len(text) for _, text in small]
    place: list[float] = []
    edge = 0.0
    for (x, _), width in zip(small, widths, strict=True):
        start = max(x - width / 2, edge, 0.0)
        place.append(start)
        edge = start + width + 0.01 * span
    overflow = max(edge - 1.02 * span, 0.0)
    limit = 1.02 * span
    for index in reversed(range(len(place))) if overflow else ():
        place[index] = min(place[index], limit - widths[index])
        limit = place[index] - 0.01 * span
    for (x, text), start, width in zip(small, place, widths, strict=True):
        axes.annotate(
            text,
            (x, height - 0.31),
            (start + width / 2, height - 0.55),
            ha="center",
            va="center",
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": theme.ink, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _limits(axes: Axes, budget: float, total: float, theme: Theme) -> None:
    axes.axvline(total, color=theme.limit, linewidth=2)
    axes.axvline(budget, color=theme.budget, linewidth=1.5, linestyle=(0, (4, 2)))
    near = abs(total - budget) < 0.3 * total
    box = _box(theme)
    axes.text(budget, 0.42, f"budget {budget:.2f} ", ha="right", va="bottom", fontsize=11, color=theme.budget, bbox=box)
    axes.text(
        total,
        0.74 if near else 0.42,
        f"physical limit {total:.2f} ",
        ha="right",
        va="bottom",
        fontsize=11,
        color=theme.limit,
        bbox=box,
    )


def _box(theme: Theme) -> dict[str, object]:
    """Paper behind a label, so that lines do not run through it."""
    return {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}


def load(rows: Sequence[Row], requested_bytes: int, theme: Theme = LIGHT) -> Axes:
    """Memory that the engine counts against max_model_len, a line for each concurrency, under the budget."""
    with styled(theme):
        axes = new_axes()
        axes.set_title("Memory against length and concurrency")
        if not rows:
            return _empty(axes, "no load to show")
        budget = gib(requested_bytes)
        top = 1.35 * budget
        lengths = sorted({_int(row, "max_model_len") for row in rows})
        concurrencies = sorted({_int(row, "concurrency") for row in rows})
        axes.set_xscale("log", base=2)
        axes.axhspan(budget, top, color=theme.limit, alpha=0.10, linewidth=0)
        axes.axhline(budget, color=theme.budget, linewidth=1.5, linestyle=(0, (4, 2)))
        axes.text(
            lengths[0], budget, f" budget {budget:.2f} GiB", va="center", ha="left", fontsize=11, bbox=_box(theme)
        )
        for index, concurrency in enumerate(concurrencies):
            mine = [row for row in rows if row["concurrency"] == concurrency]
            points = [(_int(row, "max_model_len"), gib(_int(row, "engine_bytes"))) for row in mine]
            color = SERIES[index % len(SERIES)]
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2.2, marker="o", markersize=4, clip_on=True)
            _end_label(axes, points, top, f"{concurrency:,}", theme)
        axes.set_ylim(0, top)
        axes.set_xlim(lengths[0], lengths[-1] * 1.25)
        axes.set_xticks(lengths[:: max(1, len(lengths) // 7)])
        axes.set_xticklabels([tokens_label(length) for length in lengths[:: max(1, len(lengths) // 7)]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("max_model_len, tokens of each request (number on a line: requests at once)")
        gib_axis(axes.yaxis)
        axes.grid(axis="y")
    return axes


def _end_label(axes: Axes, points: list[tuple[int, float]], top: float, text: str, theme: Theme) -> None:
    """At the line's end, or where it leaves the picture."""
    x, y = points[-1]
    if y > top:
        for (x0, y0), (x1, y1) in pairwise(points):
            if y0 <= top < y1:
                x, y = round(x0 * (x1 / x0) ** ((top - y0) / (y1 - y0))), top
                break
        else:
            return
    axes.annotate(
        text,
        (x, y),
        (5, 0 if y < top else -9),
        textcoords="offset points",
        fontsize=11,
        va="center",
        ha="left",
        bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1, "alpha": 0.8},
    )


def breakdown(rows: Sequence[Row], theme: Theme = LIGHT, most: int = 20) -> Axes:
    """The weights' parts as bars, the largest first, or in order for layers and ranks; the rest summed."""
    with styled(theme):
        by = str(rows[0]["by"]) if rows else "part"
        shown, rest = _chosen(rows, by, most)
        axes = new_axes(9, 1.6 + 0.34 * max(len(shown), 4))
        axes.set_title(f"Weights by {by}")
        if not rows:
            return _empty(axes, "vLLM refuses before it takes any memory")
        if rest:
            shown = [
                *shown,
                {
                    "part": f"{len(rest)} others",
                    "parameter_bytes": _sum(rest, "parameter_bytes"),
                    "other_bytes": _sum(rest, "other_bytes"),
                    "bytes": _sum(rest, "bytes"),
                },
            ]
        places = range(0, -len(shown), -1)
        parameters = [gib(_int(row, "parameter_bytes")) for row in shown]
        others = [gib(_int(row, "other_bytes")) for row in shown]
        axes.barh(places, parameters, 0.7, color="#0072b2")
        axes.barh(places, others, 0.7, left=parameters, color="#56b4e9")
        widest = max(gib(_int(row, "bytes")) for row in shown)
        for place, row in zip(places, shown, strict=True):
            axes.text(
                gib(_int(row, "bytes")) + 0.01 * widest,
                place,
                f"{gib(_int(row, 'bytes')):.3f}",
                va="center",
                fontsize=10,
            )
        axes.set_yticks(list(places), [_shortened(str(row["part"])) for row in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, widest * 1.12)
        gib_axis(axes.xaxis, "GiB on one GPU: parameters dark, buffers and workspaces light")
        axes.grid(axis="x")
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
            f"{first['part']} to {str(last['part']).removeprefix('layer ')}, each"
            if len(run) > 1
            else str(first["part"])
        )
        merged.append({**first, "part": span})
    return merged[:most], merged[most:]


def _shortened(text: str, most: int = 44) -> str:
    return text if len(text) <= most else "…" + text[-most + 1 :]


def variants(rows: Sequence[Row], theme: Theme = LIGHT) -> Axes:
    """What the device holds under each value of one flag, side by side, with the card's limit."""
    with styled(theme):
        axes = new_axes(9, 5.4)
        flag = str(rows[0]["flag"]) if rows else "flag"
        axes.set_title(f"The same plan under other values of {flag}")
        if not rows:
            return _empty(axes, "no values to compare")
        totals = [_int(row, "total_memory_bytes") for row in rows if row["total_memory_bytes"] is not None]
        limit = gib(max(totals, default=0))
        used = set()
        for place, row in enumerate(rows):
            if row["total_memory_bytes"] is None:
                axes.text(place, 0.02 * limit, _refused(row), ha="center", va="bottom", fontsize=10, color=theme.limit)
                continue
            bottom = 0.0
            for term in _BARS["device holds"]:
                size = max(gib(_int(row, term.field)), 0.0)
                if size <= 0:
                    continue
                encoder = term.field == "vision_encoder_runtime_peak_bytes"
                label = term.label if term.field not in used else None
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
                    fontsize=10,
                    color=theme.limit,
                )
        axes.axhline(limit, color=theme.limit, linewidth=2, label=f"physical limit {limit:.2f} GiB")
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_ylim(0, max(limit * 1.1, axes.get_ylim()[1] * 1.12))
        axes.set_xticks(range(len(rows)), [_ticked(row) for row in rows])
        axes.set_xlabel(f"{flag}, with the tokens that the cache holds")
        gib_axis(axes.yaxis)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=10, reverse=True)
    return axes


def _refused(row: Row) -> str:
    return "refused:\n" + str(row["bottleneck"]).replace("_", "\n")


def _ticked(row: Row) -> str:
    """The value, and under it the tokens that the cache holds."""
    value = str(row["value"])
    value = f"{int(value):,}" if value.isdigit() else value
    tokens = row["capacity_tokens"] if row["verdict"] == "starts" else None
    return f"{value}\n{tokens:,} tokens" if isinstance(tokens, int) else value


def media(rows: Sequence[Row], theme: Theme = LIGHT) -> Axes:
    """The encoder's peak against the number of images in flight, a line for each size, under what the card has left."""
    with styled(theme):
        axes = new_axes()
        axes.set_title("Media: encoder memory of the fullest step")
        if not rows:
            return _empty(axes, "the model takes no images")
        free = gib(_int(rows[0], "device_free_bytes"))
        highest = max(gib(_int(row, "vision_encoder_runtime_peak_bytes")) for row in rows)
        sizes = list(dict.fromkeys((row["width_pixels"], row["height_pixels"]) for row in rows))
        axes.set_xscale("log", base=2)
        ends: list[tuple[float, float, str]] = []
        for index, size in enumerate(sizes):
            mine = [row for row in rows if (row["width_pixels"], row["height_pixels"]) == size]
            points = [(_int(row, "items"), gib(_int(row, "vision_encoder_runtime_peak_bytes"))) for row in mine]
            axes.plot(
                *zip(*points, strict=True), color=SERIES[index % len(SERIES)], linewidth=2.2, marker="o", markersize=4
            )
            ends.append(
                (points[-1][0], points[-1][1], f"{size[0]} x {size[1]}: {mine[0]['embeddings_per_item']:,} tokens")
            )
        top = max(highest, min(free, highest * 2)) * 1.15
        _spread(axes, ends, 0.055 * top)
        if free <= 0:
            axes.text(
                1, top * 0.97, " nothing is left on the card", va="top", ha="left", fontsize=11, color=theme.limit
            )
        elif free < top:
            axes.axhline(free, color=theme.limit, linewidth=2)
            axes.text(
                1,
                free,
                f"left on the card {free:.2f} GiB",
                va="center",
                ha="left",
                fontsize=11,
                color=theme.limit,
                bbox=_box(theme),
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


def _spread(axes: Axes, ends: list[tuple[float, float, str]], least: float) -> None:
    """Labels right of the lines' ends, at least `least` apart."""
    below = -least
    for x, y, text in sorted(ends, key=lambda end: end[1]):
        at = max(y, below + least)
        below = at
        axes.annotate(text, (x, y), (x * 1.13, at), fontsize=11, va="center", ha="left", annotation_clip=False)


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
