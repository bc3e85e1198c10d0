"""Plans under values of a flag, or any plans, side by side as bars."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from matplotlib.axes import Axes

from planner.report.bar_figures import BARS, SHORT
from planner.report.rows import Row, int_of
from planner.report.theme import LIGHT, Theme, empty, gib, gib_axis, new_axes, readable_on, styled, titled


def variants(rows: Sequence[Row], theme: Theme = LIGHT, title: str = "") -> Axes:
    """What the device holds under each value of one flag, side by side, with the card's limit."""
    with styled(theme):
        axes = new_axes(max(8, 2.9 + 1.2 * len(rows)), 5.2)
        flag = str(rows[0]["flag"]) if rows else "flag"
        titled(axes, title or f"The same plan under other values of {flag}")
        if not rows:
            return empty(axes, "no values to compare")
        totals = [int_of(row, "total_memory_bytes") for row in rows if row["total_memory_bytes"] is not None]
        limit = gib(max(totals, default=0))
        used = set()
        for place, row in enumerate(rows):
            if row["total_memory_bytes"] is None:
                axes.text(place, 0.02 * limit, _refused(row), ha="center", va="bottom", fontsize=11, color=theme.limit)
                continue
            bottom = 0.0
            for term in BARS["device holds"]:
                size = max(gib(int_of(row, term.field)), 0.0)
                if size <= 0:
                    continue
                encoder = term.field == "vision_encoder_runtime_peak_bytes"
                label = SHORT.get(term.field, term.label) if term.field not in used else None
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
            height = gib(int_of(row, "total_memory_bytes"))
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
