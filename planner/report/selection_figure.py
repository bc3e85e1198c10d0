"""Cost against capacity of a hardware selection."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from planner.report.selection import Row
from planner.report.theme import LIGHT, Theme, new_axes, styled


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Choices with a price that no other beats in both cost and requests, cheapest first."""
    front: list[Row] = []
    priced = (row for row in rows if row["fits"] and row["usd_per_hour"] is not None)
    for row in sorted(priced, key=lambda row: (float(row["usd_per_hour"] or 0), -int(row["capacity_requests"] or 0))):
        if not front or int(row["capacity_requests"] or 0) > int(front[-1]["capacity_requests"] or 0):
            front.append(row)
    return front


def cost_against_capacity(rows: Sequence[Row], concurrency: int, theme: Theme = LIGHT) -> Axes:
    """Every choice with a price that holds the workload, the Pareto front labelled; one more in grey for each other."""
    with styled(theme):
        axes = new_axes(9, 6)
        axes.set_title("Cost against capacity")
        priced = [row for row in rows if row["fits"] and row["usd_per_hour"] is not None]
        if not priced:
            axes.text(0.5, 0.5, "no choice with a known price fits", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
            return axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.scatter(*_points(priced), s=28, color="#999999", linewidths=0)
        front = pareto_front(rows)
        axes.plot(*_points(front), color="#0072b2", linewidth=2, marker="o", markersize=7)
        axes.axvline(concurrency, color=theme.limit, linewidth=1.5, linestyle=(0, (4, 2)))
        for index, row in enumerate(front):
            x, y = float(row["capacity_requests"] or 0), float(row["usd_per_hour"] or 0)
            axes.annotate(
                f"{row['gpus_per_node']} x {row['gpu']}",
                (x, y),
                (10, -14) if index % 2 else (-10, 12),
                textcoords="offset points",
                fontsize=10,
                va="center",
                ha="left" if index % 2 else "right",
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1, "alpha": 0.85},
            )
        axes.set_xlabel(f"requests of full length held at once ({concurrency:,} asked for, dashed)")
        axes.set_ylabel("USD per hour")
        axes.set_xlim(concurrency * 0.55, max(_points(priced)[0]) * 1.35)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(which="major", axis="both")
    return axes


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [float(row["capacity_requests"] or 0) for row in rows], [float(row["usd_per_hour"] or 0) for row in rows]
