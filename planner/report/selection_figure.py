"""Cost against capacity of a hardware selection."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from planner.report.selection import Row
from planner.report.theme import LIGHT, SERIES, Theme, boxes_touch, new_axes, styled, text_box, titled

_OFFSETS = ((9, -9), (9, -22), (-9, 10), (-9, 23))
"""Where a label may stand beside its point, in points; one to the left of it ends there."""


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Choices that no other beats in both cost and requests, cheapest first.

    Of those with a dated price or one of the user's; of all with a price where none is dated.
    """
    front: list[Row] = []
    priced = _priced(rows)
    counted = [row for row in priced if row["price_date"] != "undated"] or priced
    for row in sorted(counted, key=lambda row: (float(row["usd_per_hour"] or 0), -int(row["capacity_requests"] or 0))):
        if not front or int(row["capacity_requests"] or 0) > int(front[-1]["capacity_requests"] or 0):
            front.append(row)
    return front


def cost_against_capacity(rows: Sequence[Row], concurrency: int, theme: Theme = LIGHT) -> Axes:
    """Every choice with a price that holds the workload, the Pareto front labelled; hollow: the price has no date."""
    with styled(theme):
        axes = new_axes(8, 5.6)
        titled(axes, "Cost against capacity" + (f": {rows[0]['model']}" if rows else ""))
        priced = _priced(rows)
        if not priced:
            axes.text(0.5, 0.5, "no choice with a known price fits", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
            return axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        undated = [row for row in priced if row["price_date"] == "undated"]
        dated = [row for row in priced if row["price_date"] != "undated"]
        axes.scatter(*_points(dated), s=26, color="#999999", linewidths=0)
        axes.scatter(*_points(undated), s=26, facecolors="none", edgecolors="#999999", linewidths=1.2)
        front = pareto_front(rows)
        hollow = theme.paper if front[0]["price_date"] == "undated" else SERIES[0]
        axes.plot(*_points(front), color=SERIES[0], linewidth=2, marker="o", markersize=7, markerfacecolor=hollow)
        xs, ys = _points(priced)
        least = min(*xs, concurrency)
        axes.set_xlim(least * 0.8, max(xs) * (max(xs) / least) ** 0.25 * 1.1)
        axes.set_ylim(min(ys) * 0.72, max(ys) * 1.3)
        axes.axvline(concurrency, color=theme.limit, linewidth=1.5, linestyle=(0, (4, 2)), zorder=1)
        axes.annotate(
            f"{concurrency:,} asked for",
            (concurrency, 1),
            (4, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=11,
            color=theme.limit,
        )
        axes.set_xlabel("requests of full length held at once" + (" (hollow: price without a date)" if undated else ""))
        axes.set_ylabel("USD per hour")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(which="major", axis="both")
        _label(axes, front, [row for row in priced if row not in front], theme)
    return axes


def _label(axes: Axes, front: Sequence[Row], others: Sequence[Row], theme: Theme) -> None:
    """Names beside the front's points, each where nothing stands yet, its end first; one without a place has none."""
    places = _places(axes, front)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in _places(axes, others)]
    for place in dict.fromkeys((len(front) - 1, *range(len(front)))):
        row, (x, y) = front[place], places[place]
        nodes = f" x {row['nodes']}" if row["nodes"] != 1 else ""
        text = f"{row['gpus_per_node']} x {row['gpu']}{nodes}"
        for right, up in _OFFSETS:
            box = text_box(text, x + right, y + up, left=right > 0)
            if box[0] > 0 and not any(boxes_touch(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text,
                    (float(row["capacity_requests"] or 0), float(row["usd_per_hour"] or 0)),
                    (right, up),
                    textcoords="offset points",
                    fontsize=11,
                    va="center",
                    ha="left" if right > 0 else "right",
                    bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5},
                )
                break


def _places(axes: Axes, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Where the rows' points lie, in points from the picture's corner."""
    pixels = (axes.transData.transform(point) for point in zip(*_points(rows), strict=True))
    return [(float(x) * 72 / axes.figure.dpi, float(y) * 72 / axes.figure.dpi) for x, y in pixels]


def _priced(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["fits"] and row["usd_per_hour"] is not None]


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [float(row["capacity_requests"] or 0) for row in rows], [float(row["usd_per_hour"] or 0) for row in rows]
