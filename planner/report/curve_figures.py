"""Curves: memory against length and concurrency, and against media in flight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from planner.report.rows import Row, int_of
from planner.report.theme import LIGHT, Theme, empty, gib, gib_axis, new_axes, ramp, styled, titled, tokens_label


def load(rows: Sequence[Row], requested_bytes: int, theme: Theme = LIGHT) -> Axes:
    """Memory that the engine counts against max_model_len, a line for each concurrency, under the budget."""
    with styled(theme):
        axes = new_axes()
        titled(axes, "Memory against length and concurrency")
        if not rows:
            return empty(axes, "no load to show")
        budget = gib(requested_bytes)
        top = 1.3 * budget
        lengths = sorted({int_of(row, "max_model_len") for row in rows})
        concurrencies = sorted({int_of(row, "concurrency") for row in rows})
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
            points = [(int_of(row, "max_model_len"), gib(int_of(row, "engine_bytes"))) for row in mine]
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


def media(rows: Sequence[Row], theme: Theme = LIGHT) -> Axes:
    """The encoder's peak against the number of images in flight, a line for each size, under what the card has left."""
    with styled(theme):
        axes = new_axes()
        titled(axes, "Media: encoder memory of the fullest step")
        if not rows:
            return empty(axes, "the model takes no images")
        free = gib(int_of(rows[0], "device_free_bytes"))
        highest = max(gib(int_of(row, "vision_encoder_runtime_peak_bytes")) for row in rows)
        sizes = list(dict.fromkeys((row["width_pixels"], row["height_pixels"]) for row in rows))
        axes.set_xscale("log", base=2)
        ends: list[tuple[float, float, str]] = []
        for size, color in zip(sizes, ramp(theme, len(sizes)), strict=True):
            mine = [row for row in rows if (row["width_pixels"], row["height_pixels"]) == size]
            points = [(int_of(row, "items"), gib(int_of(row, "vision_encoder_runtime_peak_bytes"))) for row in mine]
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
        items = sorted({int_of(row, "items") for row in rows})
        axes.set_xlim(items[0], items[-1] * 1.1)
        axes.set_xticks(items, [str(item) for item in items])
        axes.xaxis.set_minor_locator(NullLocator())
        budget = int_of(rows[0], "encoder_budget_tokens")
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
