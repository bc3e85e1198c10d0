"""The answer of a hardware selection as rows, text, Markdown, HTML and a picture of cost against capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.report.document import Document, Grid, Section
from planner.report.prices import HOURS_PER_MONTH, Cost, PriceBook
from planner.report.tables import Cell
from planner.search.roofline import EFFICIENCY, decode_tokens_per_s, prefill_tokens_per_s
from planner.search.select import Choice
from planner.units import format_gib

Row = dict[str, Cell]

ORDERS = ("cost", "cost-per-token", "gpus", "watts", "headroom")
ESTIMATED = (
    f"Tokens per second are estimates: a roofline of memory bandwidth and FLOPS at {EFFICIENCY:.0%} of its height, no "
    "communication, no vision encoder. Memory and verdicts are those of the planner's ledgers."
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the buyer will not exceed; None: no limit."""

    usd_per_hour: float | None = None
    watts: int | None = None


def selection_rows(
    model: str, version: str, choices: Sequence[Choice], concurrency: int, book: PriceBook, limits: Limits, order: str
) -> list[Row]:
    """A row for each choice, those that fit first, in the order asked for; prices that are not known come last."""
    rows = [_row(model, version, choice, concurrency, book, limits) for choice in choices]
    fits = sorted((row for row in rows if row["fits"]), key=lambda row: _key(row, order))
    ranked = [{**row, "rank": rank} for rank, row in enumerate(fits, 1)]
    return [*ranked, *(row for row in rows if not row["fits"])]


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """The first row of each card: its best count, or its largest one where none fits."""
    found: dict[Cell, Row] = {}
    for row in rows:
        if row["gpu"] not in found or not found[row["gpu"]]["fits"]:
            found[row["gpu"]] = row
    return list(found.values())


def _row(model: str, version: str, choice: Choice, concurrency: int, book: PriceBook, limits: Limits) -> Row:
    gpu, engine, cards = choice.gpu, choice.engine, choice.count * choice.nodes
    cost = book.cost(gpu, choice.count, choice.nodes)
    watts = None if gpu.max_power_watts is None else gpu.max_power_watts * cards
    reason = choice.rejection.message if choice.rejection else ""
    bottleneck = str(choice.rejection.bottleneck) if choice.rejection else ""
    if not reason:
        bottleneck, reason = _beyond(cost, watts, limits)
    decode, prefill = _speed(choice, concurrency)
    tokens = choice.requests * engine.config.max_model_len if engine else 0
    return {
        "rank": None,
        "model": model,
        "vllm_version": version,
        "gpu": gpu.name,
        "gpus_per_node": choice.count,
        "nodes": choice.nodes,
        "fits": not reason,
        "bottleneck": bottleneck,
        "reason": reason,
        "tensor_parallel_size": engine.tensor_parallel_size if engine else None,
        "pipeline_parallel_size": engine.pipeline_parallel_size if engine else None,
        "replicas": choice.replicas or None,
        "gpu_memory_utilization": engine.gpu_memory_utilization if engine else None,
        "dtype": engine.config.dtype if engine else None,
        "total_memory_bytes": gpu.total_memory_bytes,
        "memory_evidence": gpu.memory_evidence,
        "weights_memory_bytes": engine.weights_memory_bytes if engine else None,
        "headroom_bytes": engine.headroom_bytes if engine else None,
        "capacity_tokens": tokens,
        "capacity_requests": choice.requests,
        "estimated_decode_tokens_per_s": _rounded(decode, 1),
        "estimated_prefill_tokens_per_s": _rounded(prefill, 1),
        "usd_per_gpu_hour": _rounded(cost.usd_per_gpu_hour if cost else None, 6),
        "billed_gpus": cost.billed if cost else None,
        "usd_per_hour": _rounded(cost.usd_per_hour if cost else None, 4),
        "usd_per_month": _rounded(cost.usd_per_hour * HOURS_PER_MONTH if cost else None, 2),
        "usd_per_million_tokens": _rounded(cost.usd_per_hour / 3600 / decode * 1e6 if cost and decode else None, 4),
        "price_offer": cost.offer if cost else None,
        "price_source": cost.source if cost else None,
        "price_date": cost.date if cost else None,
        "watts": watts,
        "estimated_tokens_per_joule": _rounded(decode / watts if decode and watts else None, 4),
    }


def _beyond(cost: Cost | None, watts: int | None, limits: Limits) -> tuple[str, str]:
    if limits.usd_per_hour is not None and (cost is None or cost.usd_per_hour > limits.usd_per_hour):
        return (
            "budget",
            "no price is known" if cost is None else f"{cost.usd_per_hour:.2f} USD an hour is above the budget",
        )
    if limits.watts is not None and (watts is None or watts > limits.watts):
        return "power", "its power is not known" if watts is None else f"{watts} W is above the limit"
    return "", ""


def _speed(choice: Choice, concurrency: int) -> tuple[float | None, float | None]:
    """All replicas together, the requests spread over them."""
    engine = choice.engine
    if engine is None or not choice.replicas:
        return None, None
    each = min(max(concurrency // choice.replicas, 1), engine.requests)
    busy = min(choice.replicas, concurrency)
    decode = decode_tokens_per_s(engine.load, choice.gpu, engine.config.dtype, each)
    prefill = prefill_tokens_per_s(engine.load, choice.gpu, engine.config.dtype)
    return (None if decode is None else decode * busy), (None if prefill is None else prefill * choice.replicas)


def _key(row: Row, order: str) -> tuple[Any, ...]:
    cards = int(row["gpus_per_node"] or 0) * int(row["nodes"] or 0)
    first: dict[str, Any] = {
        "cost": row["usd_per_hour"],
        "cost-per-token": row["usd_per_million_tokens"],
        "gpus": cards,
        "watts": row["watts"],
        "headroom": -int(row["headroom_bytes"] or 0),
    }
    value = first[order]
    price = row["usd_per_hour"]
    return (
        value is None,
        value or 0,
        price is None,
        price or 0,
        cards,
        -int(row["capacity_requests"] or 0),
        row["gpu"],
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)


def selection_grid(rows: Sequence[Row]) -> Grid:
    """What a meeting looks at: a line a card."""
    head = (
        "#",
        "cards",
        "layout",
        "holds#",
        "headroom#",
        "tokens/s (est.)#",
        "USD/h#",
        "USD/month#",
        "USD/M tokens (est.)#",
        "W#",
        "price: offer, date",
        "why not",
    )
    return Grid(head, tuple(_line(row) for row in rows))


def _line(row: Row) -> tuple[str, ...]:
    nodes = f" x {row['nodes']}" if row["nodes"] != 1 else ""
    layout = ""
    if row["tensor_parallel_size"]:
        layout = f"TP {row['tensor_parallel_size']}"
        layout += f" PP {row['pipeline_parallel_size']}" if row["pipeline_parallel_size"] != 1 else ""
        layout += f", {row['replicas']} engines" if row["replicas"] != 1 else ""
    price = (
        "no price known"
        if row["price_offer"] is None
        else ", ".join(str(row[name]) for name in ("price_offer", "price_date") if row[name])
    )
    headroom = row["headroom_bytes"]
    return (
        str(row["rank"] or "-"),
        f"{row['gpus_per_node']} x {row['gpu']}{nodes}",
        layout,
        str(row["capacity_requests"] or ""),
        format_gib(headroom) if isinstance(headroom, int) else "",
        _number(row["estimated_decode_tokens_per_s"], 0),
        _number(row["usd_per_hour"], 2),
        _number(row["usd_per_month"], 0),
        _number(row["usd_per_million_tokens"], 2),
        _number(row["watts"], 0),
        price,
        str(row["reason"]),
    )


def _number(value: Cell, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, (int, float)) else ""


def selection_document(title: str, rows: Sequence[Row], notes: Sequence[str], picture: bool) -> Document:
    shown = best_of_each(rows)
    fitting = [row for row in shown if row["fits"]]
    verdict = f"{len(fitting)} of {len(shown)} cards fit in the counts tried"
    pictures = (("select", "Cost against capacity, the front labelled"),) if picture else ()
    return Document(
        title,
        verdict,
        (
            Section("The best count of each card", ESTIMATED, selection_grid(fitting), pictures, items=tuple(notes)),
            Section(
                "Cards that do not",
                "With the largest count tried.",
                selection_grid([row for row in shown if not row["fits"]]),
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection with what it was asked: rows of the `select` table, best first."""

    title: str
    rows: list[Row]
    concurrency: int
    notes: tuple[str, ...] = ()

    def text(self, kind: str, *, color: bool = False) -> str:
        """As "csv", "markdown" or for a terminal."""
        from planner.report.document import markdown
        from planner.report.schema import table_csv

        if kind == "csv":
            return table_csv("select", self.rows)
        document = selection_document(self.title, self.rows, self.notes, picture=False)
        return markdown(document) if kind == "markdown" else _terminal(document, color=color)

    def files(self) -> dict[str, bytes]:
        """select.csv, select.md, select.html and the picture in both themes. Needs the `report` extra."""
        from planner.report.document import html, markdown
        from planner.report.schema import table_csv
        from planner.report.selection_figure import cost_against_capacity
        from planner.report.theme import DARK, LIGHT, png

        pictures = {
            name: png(cost_against_capacity(self.rows, self.concurrency, theme), theme)
            for name, theme in (("select.png", LIGHT), ("select_dark.png", DARK))
        }
        document = selection_document(self.title, self.rows, self.notes, picture=True)
        return {
            "select.csv": table_csv("select", self.rows).encode(),
            "select.md": markdown(document).encode(),
            "select.html": html(document, pictures).encode(),
            **pictures,
        }


def _terminal(document: Document, *, color: bool) -> str:
    from io import StringIO

    from rich.table import Table
    from rich.text import Text

    from planner.report.text import console_for

    buffer = StringIO()
    console = console_for(buffer, color=color, width=200)
    console.print(Text(f"{document.title}: ") + Text(document.verdict, style="bold"))
    for section in document.sections:
        if section.grid is None or not section.grid.rows:
            continue
        console.print(f"\n{section.title}")
        empty = [not any(row[index] for row in section.grid.rows) for index in range(len(section.grid.head))]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head, skip in zip(section.grid.head, empty, strict=True):
            if not skip:
                table.add_column(
                    head.removesuffix("#").strip() or "#", justify="right" if head.endswith("#") else "left"
                )
        for row in section.grid.rows:
            table.add_row(*(Text(cell) for cell, skip in zip(row, empty, strict=True) if not skip))
        console.print(table)
        for item in section.items:
            console.print(Text(f"note: {item}"), soft_wrap=True)
    console.print(ESTIMATED, soft_wrap=True)
    return buffer.getvalue()
