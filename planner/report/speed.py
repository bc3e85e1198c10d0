"""An estimate of speed and cost as text and as JSON (`vplan.speed/1`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from typing import Any

from msgspec import Struct
from rich.table import Table
from rich.text import Text

from planner.memory.result import Estimate
from planner.report.prices import Cost
from planner.report.text import console_for
from planner.search.speed import Range, Speed, usd_per_million_tokens

ESTIMATED = (
    "An estimate: rooflines of memory bandwidth, FLOPS and the cards' link, at what vLLM's kernels were measured to "
    "reach. The ends take everything at its slow or fast end; nine in ten published figures lie between them "
    "(docs/speed.md)."
)


class SpeedAnswer(Struct, frozen=True):
    """Speeds of one engine at several concurrencies. `held`: requests of these lengths that its cache holds at once.
    `cost`: of the cards, None where no price is known."""

    estimate: Estimate
    speeds: Sequence[Speed]
    held: int
    cost: Cost | None


def speed_json(answer: SpeedAnswer) -> str:
    estimate, cost = answer.estimate, answer.cost
    document = {
        "schema": "vplan.speed/1",
        "estimated": True,
        "model": estimate.model,
        "gpus": estimate.gpus,
        "vllm_version": estimate.vllm_version,
        "requests_held": answer.held,
        "price": None
        if cost is None
        else {
            "usd_per_hour": round(cost.usd_per_hour, 4), "billed_gpus": cost.billed, "offer": cost.offer,
            "source": cost.source, "date": cost.date,
        },
        "loads": [_load(speed, cost) for speed in answer.speeds],
    }  # fmt: skip
    return json.dumps(document, indent=1)


def _load(speed: Speed, cost: Cost | None) -> dict[str, Any]:
    dollars = None if cost is None else usd_per_million_tokens(cost.usd_per_hour, speed.output_tokens_per_s)
    return {
        "concurrency": speed.concurrency,
        "prompt_tokens": speed.prompt_tokens,
        "output_tokens": speed.output_tokens,
        "ttft_s": _range(speed.ttft_s),
        "itl_s": _range(speed.itl_s),
        "output_tokens_per_s": _range(speed.output_tokens_per_s),
        "prefill_tokens_per_s": _range(speed.prefill_tokens_per_s),
        "usd_per_million_output_tokens": None if dollars is None else _range(dollars),
    }


def _range(span: Range) -> dict[str, float]:
    return {"low": float(f"{span.low:.4g}"), "expected": float(f"{span.value:.4g}"), "high": float(f"{span.high:.4g}")}


def speed_text(answer: SpeedAnswer, *, color: bool = False) -> str:
    """A line a concurrency: expected value, and the interval below it."""
    buffer = StringIO()
    console = console_for(buffer, color=color, width=120)
    estimate, first = answer.estimate, answer.speeds[0]
    console.print(
        Text(
            f"{estimate.model} on {estimate.gpus}, vLLM {estimate.vllm_version}: prompts of {first.prompt_tokens:,} "
            f"tokens, answers of {first.output_tokens:,}; the cache holds {answer.held:,} such requests"
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    heads = (
        "at once",
        "first token, s",
        "between tokens, ms",
        "answer tokens/s",
        "prompt tokens/s",
        "USD/M answer tokens",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for speed in answer.speeds:
        table.add_row(*_cells(speed, answer))
    console.print(table)
    cost = answer.cost
    console.print(
        Text("no price is known for these cards")
        if cost is None
        else Text(f"{cost.usd_per_hour:.2f} USD an hour: {cost.offer}, {cost.source}, {cost.date}".rstrip(", ")),
        soft_wrap=True,
    )
    console.print(Text(ESTIMATED), soft_wrap=True)
    return buffer.getvalue()


def _cells(speed: Speed, answer: SpeedAnswer) -> tuple[str, ...]:
    dollars = (
        None if answer.cost is None else usd_per_million_tokens(answer.cost.usd_per_hour, speed.output_tokens_per_s)
    )
    return (
        f"{speed.concurrency:,}" + ("" if speed.concurrency <= answer.held else " (waits)"),
        _span(speed.ttft_s, 2),
        _span(speed.itl_s.scaled(1e3), 1),
        _span(speed.output_tokens_per_s, 0),
        _span(speed.prefill_tokens_per_s, 0),
        "" if dollars is None else _span(dollars, 2),
    )


def _span(span: Range, digits: int) -> str:
    return f"{span.value:,.{digits}f} ({span.low:,.{digits}f}-{span.high:,.{digits}f})"
