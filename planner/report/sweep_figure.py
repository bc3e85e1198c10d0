"""The heatmap of a sweep: requests held at once, what refuses, and the frontier of what starts."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from planner.report.rows import Row
from planner.report.sweep import axes_of
from planner.report.theme import LIGHT, Theme, new_axes, readable_on, styled, titled

_SHORT = {
    "kv_cache": "KV cache",
    "device_memory": "device",
    "startup_memory": "startup",
    "weights": "weights",
    "batched_tokens": "batch",
    "max_model_len": "length",
    "heads_divisibility": "heads",
}


def heatmap(rows: Sequence[Row], theme: Theme = LIGHT) -> Axes:
    """A cell a pair: vLLM's maximum concurrency, lighter for more; refused pairs are blank and name the bottleneck.

    The thick line is the frontier. A star: starts, but a full media batch would not fit beside it.
    """
    with styled(theme):
        if not rows:
            axes = new_axes()
            axes.set_axis_off()
            return axes
        xs, ys = axes_of(rows)
        axes = new_axes(max(7.0, 2.2 + 1.05 * len(xs)), max(3.5, 2.0 + 0.62 * len(ys)))
        titled(axes, f"Requests of max_model_len held at once: {rows[0]['model']}, {rows[0]['gpus']}")
        values = [float(row["max_concurrency"] or 0) for row in rows if row["verdict"] == "starts"]
        low, high = log10(max(min(values, default=1), 0.01)), log10(max(max(values, default=1), 0.02))
        starts: set[tuple[int, int]] = set()
        for row in rows:
            place = xs.index(str(row["x_value"])), ys.index(str(row["y_value"]))
            if row["verdict"] == "starts":
                starts.add(place)
            _cell(axes, place, row, (low, high), theme)
        _frontier(axes, starts, len(xs), len(ys), theme)
        axes.set_xlim(0, len(xs))
        axes.set_ylim(0, len(ys))
        axes.set_xticks([index + 0.5 for index in range(len(xs))], [_ticked(value) for value in xs])
        axes.set_yticks([index + 0.5 for index in range(len(ys))], [_ticked(value) for value in ys])
        axes.tick_params(length=0)
        crowded = any(row["verdict"] == "starts" and not row["fits_with_media"] for row in rows)
        star = "\n* starts, without room for a full batch of media" if crowded else ""
        axes.set_xlabel(_labelled(str(rows[0]["x_flag"])) + star)
        axes.set_ylabel(_labelled(str(rows[0]["y_flag"])))
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    return axes


def _cell(axes: Axes, place: tuple[int, int], row: Row, span: tuple[float, float], theme: Theme) -> None:
    x, y = place
    if row["verdict"] != "starts":
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=theme.faint, edgecolor=theme.paper, linewidth=1.5, alpha=0.5))
        text = _SHORT.get(str(row["bottleneck"]), str(row["bottleneck"]).replace("_", "\n"))
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=11, color=theme.limit)
        return
    value = float(row["max_concurrency"] or 0)
    share = (log10(max(value, 0.01)) - span[0]) / max(span[1] - span[0], 1e-9)
    red, green, blue, _ = colormaps["cividis"](share)
    color = f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor=theme.paper, linewidth=1.5))
    star = "" if row["fits_with_media"] else " *"
    axes.text(x + 0.5, y + 0.5, f"{value:,.1f}{star}", ha="center", va="center", fontsize=11, color=readable_on(color))


def _frontier(axes: Axes, starts: set[tuple[int, int]], columns: int, rows: int, theme: Theme) -> None:
    for x, y in starts:
        if x + 1 < columns and (x + 1, y) not in starts:
            axes.plot([x + 1, x + 1], [y, y + 1], color=theme.limit, linewidth=3.5, solid_capstyle="projecting")
        if y + 1 < rows and (x, y + 1) not in starts:
            axes.plot([x, x + 1], [y + 1, y + 1], color=theme.limit, linewidth=3.5, solid_capstyle="projecting")
        if x > 0 and (x - 1, y) not in starts:
            axes.plot([x, x], [y, y + 1], color=theme.limit, linewidth=3.5, solid_capstyle="projecting")
        if y > 0 and (x, y - 1) not in starts:
            axes.plot([x, x + 1], [y, y], color=theme.limit, linewidth=3.5, solid_capstyle="projecting")


def _labelled(flag: str) -> str:
    return f"{flag}, tokens" if flag in ("max_model_len", "max_num_batched_tokens") else flag


def _ticked(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value
