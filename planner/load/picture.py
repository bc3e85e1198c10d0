"""The picture of a load test: memory against the plan, the server's queue and cache, and when first tokens came."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.errors import InputError
from planner.load.mix import KINDS
from planner.load.rows import Outcome
from planner.report.theme import LIGHT, SERIES, Theme, gib, png, styled

_Look = dict[str, str]


def read_looks(file: Path) -> list[_Look]:
    """The monitor's rows of a test. InputError where there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            return [row for row in csv.DictReader(opened) if None not in row.values()]
    except (OSError, csv.Error) as error:
        raise InputError(f"{file}: {error}") from None


def picture(
    outcomes: Sequence[Outcome], looks: Sequence[_Look], document: dict[str, Any], theme: Theme = LIGHT
) -> bytes:
    """A PNG of three panels over the seconds of the test."""
    began = min([*(outcome.sent_at for outcome in outcomes), *(float(look["time"]) for look in looks)], default=0.0)
    with styled(theme):
        figure = Figure(figsize=(9, 10), layout="constrained")
        memory, queue, latency = cast("tuple[Axes, Axes, Axes]", figure.subplots(3, 1, sharex=True))
        _memory(memory, looks, began, document["memory"]["plan"], theme)
        _queue(queue, looks, began, theme)
        _latency(latency, outcomes, began)
        for axes in (memory, queue, latency):
            axes.grid(axis="y")
        latency.set_xlabel("seconds")
    return png(memory, theme)


def _memory(axes: Axes, looks: Sequence[_Look], began: float, plan: dict[str, Any] | None, theme: Theme) -> None:
    axes.set_title("GPU memory under load" + ("" if plan is None else " against the plan"))
    axes.set_ylabel("GiB in use")
    count = max((len(look["gpu_used_bytes"].split()) for look in looks), default=0)
    for index in range(count):
        points = []
        for look in looks:
            used = look["gpu_used_bytes"].split()
            if index < len(used) and used[index] != "-":
                points.append((float(look["time"]) - began, gib(float(used[index]))))
        axes.plot(*zip(*points, strict=True), color=SERIES[index % len(SERIES)], label=f"GPU {index}", linewidth=2)
    if plan is not None:
        low, high = (gib(value) for value in plan["used_after_startup_bytes_interval"])
        axes.axhspan(low, high, color=SERIES[2], alpha=0.25, label="plan after startup")
        axes.axhline(gib(plan["used_after_startup_bytes"]), color=SERIES[2], linewidth=1)
        axes.axhline(gib(plan["peak_bytes"]), color=theme.limit, linestyle="--", label="plan at most")
    if count or plan is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _queue(axes: Axes, looks: Sequence[_Look], began: float, theme: Theme) -> None:
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
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right", frameon=False, ncols=3)


def _latency(axes: Axes, outcomes: Sequence[Outcome], began: float) -> None:
    axes.set_title("Time to the first token, by the moment of sending")
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
    if axes.collections:
        axes.legend(loc="upper right", frameon=False, ncols=4)


def _series(looks: Sequence[_Look], name: str, began: float) -> tuple[list[float], list[float]]:
    found = [(float(look["time"]) - began, float(look[name])) for look in looks if look[name]]
    return [time for time, _ in found], [value for _, value in found]
