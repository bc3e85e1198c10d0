"""A verification as text, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from io import StringIO

from planner.memory.result import Estimate
from planner.units import GIB
from planner.verify.compare import Comparison, Row
from planner.verify.outcome import Outcome

_COLUMNS = ("term", "predicted", "measured", "difference", "read_within", "agrees")


def render(form: str, estimate: Estimate, outcome: Outcome, comparison: Comparison, notes: Sequence[str] = ()) -> str:
    """The answer in one of the formats of every command."""
    if form == "json":
        return _json(estimate, outcome, comparison, notes)
    if form == "csv":
        return _csv(comparison)
    if form == "markdown":
        return _markdown(comparison)
    return _text(estimate, outcome, comparison, notes)


def _text(estimate: Estimate, outcome: Outcome, comparison: Comparison, notes: Sequence[str]) -> str:
    lines = [f"{estimate.model} on {estimate.gpus}, vLLM {estimate.vllm_version}: {comparison.conclusion}"]
    lines += [f"  {reason}" for reason in comparison.reasons]
    lines.append("")
    lines.append(f"{'one GPU':32s} {'predicted':>14s} {'measured':>14s} {'difference':>12s}")
    for row in comparison.rows:
        mark = {True: "", False: "  <- off", None: ""}[row.agrees]
        lines.append(
            f"{row.term.removesuffix('_bytes').replace('_', ' '):32s} {_shown(row, row.predicted):>14s} "
            f"{_shown(row, row.measured):>14s} {_shown(row, row.difference):>12s}{mark}"
        )
    lines.append("")
    if outcome.device_used_bytes:
        lines.append("device memory taken, GiB: " + _gib_list(outcome.device_used_bytes))
    if outcome.device_used_loaded_bytes:
        lines.append("after the requests, GiB: " + _gib_list(outcome.device_used_loaded_bytes))
    for result in outcome.requests:
        lines.append(f"request {result.kind} ({result.detail}): {result.error or 'answered'}")
    if outcome.left_behind_bytes:
        lines.append("device memory left behind, GiB: " + _gib_list(outcome.left_behind_bytes))
    words = [f"{name.replace('_', ' ')} {value}" for name, value in outcome.words.items() if name != "model"]
    if words:
        lines.append("the engine says: " + ", ".join(words))
    lines += [f"note: {note}" for note in notes]
    lines.append(f"took {outcome.seconds:.0f} s")
    return "\n".join(lines)


def _shown(row: Row, value: float | None) -> str:
    if value is None:
        return "-"
    if row.term.endswith("_bytes"):
        return f"{value / GIB:.3f} GiB"
    return f"{value:,.2f}" if row.term == "max_concurrency" else f"{value:,.0f}"


def _gib_list(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size / GIB:.2f}" for size in sizes)


def _records(comparison: Comparison) -> list[dict[str, str | float | bool | None]]:
    return [
        {
            "term": row.term, "predicted": _whole(row, row.predicted), "measured": _whole(row, row.measured),
            "difference": _whole(row, row.difference), "read_within": _whole(row, row.rounding), "agrees": row.agrees,
        }
        for row in comparison.rows
    ]  # fmt: skip


def _whole(row: Row, value: float | None) -> float | None:
    return value if value is None or row.term == "max_concurrency" else round(value)


def _json(estimate: Estimate, outcome: Outcome, comparison: Comparison, notes: Sequence[str]) -> str:
    document = {
        "schema": "vplan.verify/1",
        "conclusion": comparison.conclusion,
        "reasons": list(comparison.reasons),
        "status": outcome.status,
        "failure": None
        if outcome.failure is None
        else {"bottleneck": outcome.failure.bottleneck, "message": outcome.failure.message},
        "terms": _records(comparison),
        "requests": [{"kind": item.kind, "sent": item.detail, "error": item.error} for item in outcome.requests],
        "device_used_bytes": list(outcome.device_used_bytes),
        "device_used_loaded_bytes": list(outcome.device_used_loaded_bytes),
        "left_behind_bytes": list(outcome.left_behind_bytes),
        "engine_says": outcome.words,
        "seconds": round(outcome.seconds, 1),
        "notes": list(notes),
        "estimate": estimate.model_dump(mode="json"),
    }
    return json.dumps(document, indent=1)


def _csv(comparison: Comparison) -> str:
    buffer = StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(comparison))
    return buffer.getvalue()


def _markdown(comparison: Comparison) -> str:
    lines = ["| term | predicted | measured | difference | agrees |", "| --- | ---: | ---: | ---: | --- |"]
    for row in comparison.rows:
        agrees = {True: "yes", False: "no", None: ""}[row.agrees]
        cells = (row.term, *(_shown(row, value) for value in (row.predicted, row.measured, row.difference)), agrees)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"**{comparison.conclusion}**", "", *lines])
