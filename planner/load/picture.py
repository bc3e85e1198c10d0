"""The picture of a load test: memory against the plan, the server's queue and cache, and when first tokens came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.load.looks import Look, used_series
from planner.load.mix import KINDS
from planner.load.rows import Outcome
from planner.report.theme import LIGHT, SERIES, Theme, gib, png, styled


def picture(
    outcomes: Sequence[Outcome], looks: Sequence[Look], document: dict[str, Any], theme: Theme = LIGHT
) -> bytes:
    """A PNG of three panels over the seconds of the test."""
    began = min([*(outcome.sent_at for outcome in outcomes), *(float(look["time"]) for look in looks)], default=0.0)
    with styled(theme):
        figure = Figure(figsize=(9, 10), layout="constrained")
        top, queue, latency = cast("tuple[Axes, Axes, Axes]", figure.subplots(3, 1, sharex=True))
        _memory(top, looks, began, document["memory"], theme)
        _queue(queue, looks, began, theme)
        _latency(latency, outcomes, began)
        for axes in (top, queue, latency):
            axes.grid(axis="y")
        latency.set_xlabel("seconds since the start (first tokens: of sending)")
    return png(top, theme)


def _memory(axes: Axes, looks: Sequence[Look], began: float, memory: dict[str, Any], theme: Theme) -> None:
    plan = memory["plan"]
    axes.set_title("GPU memory under load")
    axes.set_ylabel("GiB in use")
    for card in memory["cards"]:
        index, reserved = int(card["gpu"]), int(card["reserved_bytes"])
        points = used_series(looks, index)
        times, held = [time - began for time, _ in points], [gib(used - reserved) for _, used in points]
        axes.plot(times, held, color=SERIES[index % len(SERIES)], label=f"GPU {index}", linewidth=2)
    if plan is not None:
        low, high = (gib(value) for value in plan["used_after_startup_bytes_interval"])
        axes.axhspan(low, high, color=SERIES[2], alpha=0.25, label="plan after startup")
        axes.axhline(gib(plan["used_after_startup_bytes"]), color=SERIES[2], linewidth=1)
        axes.axhline(gib(plan["peak_bytes"]), color=theme.limit, linestyle="--", label="plan at most")
    _legend(axes, *axes.get_legend_handles_labels())


def _queue(axes: Axes, looks: Sequence[Look], began: float, theme: Theme) -> None:
    axes.set_title("Requests and cache")
    axes.set_ylabel("requests")
    for index, name in enumerate(("running", "waiting")):
        axes.plot(*_series(looks, name, began), color=SERIES[index], label=name, linewidth=2)
    axes.set_ylim(bottom=0)
    cache = axes.twinx()
    times, usage = _series(looks, "kv_cache_usage", began)
    cache.plot(times, [100 * value for value in usage], color=theme.ink, linestyle=":", label="KV cache")
    cache.set_ylim(0, 100)
    cache.set_ylabel("KV cache, %")
    lines = [*axes.get_lines(), *cache.get_lines()]
    _legend(axes, lines, [str(line.get_label()) for line in lines])


def _latency(axes: Axes, outcomes: Sequence[Outcome], began: float) -> None:
    axes.set_title("Time to the first token")
    axes.set_ylabel("seconds")
    for index, kind in enumerate(KINDS):
        points = [(one.sent_at - began, one.ttft_s) for one in outcomes if one.kind == kind and one.ttft_s is not None]
        if points:
            axes.scatter(
                [time for time, _ in points], [value for _, value in points], s=14, color=SERIES[index], label=kind
            )
    failed = [one.sent_at - began for one in outcomes if one.status in ("failed", "timeout")]
    if failed:
        axes.scatter(failed, [0.0] * len(failed), marker="x", color=SERIES[3], label="failed")
    axes.set_ylim(bottom=0)
    _legend(axes, *axes.get_legend_handles_labels())


def _legend(axes: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the axes at the right, beside the title; at the right of them where there is too much for that."""
    if len(handles) > 4:
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    elif handles:
        axes.legend(
            handles, labels, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=4, frameon=False, fontsize=10,
            columnspacing=1.2, handlelength=1.2, borderpad=0.2,
        )  # fmt: skip


def _series(looks: Sequence[Look], name: str, began: float) -> tuple[list[float], list[float]]:
    found = [(float(look["time"]) - began, float(look[name])) for look in looks if look[name]]
    return [time for time, _ in found], [value for _, value in found]
