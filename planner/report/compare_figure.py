"""Pictures of plans side by side: what each holds, and the difference of every ledger term."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from planner.memory.result import Estimate
from planner.report import figures
from planner.report.rows import Row, estimate_cells, who
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS
from planner.report.theme import LIGHT, Theme, gib, gib_axis, new_axes, styled, titled

_LEAST_BYTES = 1 << 20
"""Differences below are not drawn; the table has them."""


def plans(estimates: Sequence[tuple[str, Estimate]], theme: Theme = LIGHT) -> Axes:
    """What the device holds under each plan, side by side, with the (largest) card's limit."""
    rows: list[Row] = [
        {**who(item), "flag": "plan", "value": label, **estimate_cells(item)} for label, item in estimates
    ]
    return figures.variants(rows, theme, "Plans side by side")


def differences(rows: Sequence[Row], theme: Theme = LIGHT) -> Axes:
    """Rows of the `compare` table as bars: by how much a term differs from the first plan, right for more."""
    colors = {term.field: term.color for term in (*ENGINE_TERMS, *DEVICE_TERMS) if term.color}
    labels = {term.field: term.label for term in (*ENGINE_TERMS, *DEVICE_TERMS)}
    names = list(dict.fromkeys(str(row["plan"]) for row in rows))
    drawn = [row for row in rows if row["term"] in colors and abs(_difference(row)) >= _LEAST_BYTES]
    terms = [term for term in colors if any(row["term"] == term for row in drawn)]
    drawn.sort(key=lambda row: (terms.index(str(row["term"])), names.index(str(row["plan"]))))
    many = len(names) > 2
    lines: list[tuple[str, Row | None]] = []
    for row in drawn:
        label = labels[str(row["term"])]
        if many and not any(label == known for known, _ in lines):
            lines.append((label, None))
        lines.append((str(row["plan"]) if many else label, row))
    with styled(theme):
        axes = new_axes(8, 1.5 + 0.36 * max(len(lines), 3))
        titled(axes, f"Difference to {names[0]}" + ("" if many else f": {names[-1]}"))
        if not drawn:
            axes.text(0.5, 0.5, "no term differs by 1 MiB", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
            return axes
        sizes = [gib(_difference(row)) for row in drawn]
        longest = max(abs(size) for size in sizes)
        for place, (_, line) in enumerate(lines):
            if line is not None:
                size = gib(_difference(line))
                side = 1 if size > 0 else -1
                axes.barh(-place, size, 0.68, color=colors[str(line["term"])])
                axes.text(
                    size + side * 0.015 * longest,
                    -place,
                    f"{size:+.2f}",
                    va="center",
                    ha="left" if side > 0 else "right",
                    fontsize=11,
                    bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5},
                )
        axes.axvline(0, color=theme.ink, linewidth=1)
        axes.set_yticks([-place for place in range(len(lines))], [label for label, _ in lines])
        for tick, (_, line) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if line is None else "normal")
        axes.tick_params(axis="y", length=0)
        room = longest * 0.2
        axes.set_xlim(min(0.0, *sizes) - room * (min(sizes) < 0), max(0.0, *sizes) + room * (max(sizes) > 0))
        axes.set_ylim(-len(lines) + 0.4, 0.6)
        gib_axis(axes.xaxis, "GiB on one GPU, more to the right")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    return axes


def _difference(row: Row) -> int:
    value = row["difference"]
    return value if isinstance(value, int) else 0
