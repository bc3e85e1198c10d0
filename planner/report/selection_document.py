"""A hardware selection as a document: one table of the best count of each card, one of the cards that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from planner.report.document import Document, Grid, Section
from planner.report.selection import Row, best_of_each
from planner.report.tables import Cell
from planner.units import format_gib

ESTIMATED = (
    "Tokens per second, and what follows from them, are estimates from the cards' bandwidth and FLOPS, without the "
    "vision encoder: they rank, they promise nothing. Memory and verdicts are those of the planner's ledgers. Prices "
    "without a date rank after dated ones."
)


def picture_name(place: int) -> str:
    """The picture of the model at `place` of a selection, without ending."""
    return "select" if place == 0 else f"select_{place + 1}"


def selection_document(title: str, rows: Sequence[Row], notes: Sequence[str], *, pictures: bool = False) -> Document:
    """`pictures`: files named by picture_name stand beside the document."""
    shown = best_of_each(rows)
    fitting = sum(bool(row["fits"]) for row in shown)
    models = list(dict.fromkeys(row["model"] for row in shown))
    sections: list[Section] = []
    for place, model in enumerate(models):
        of_model = f": {model}" if len(models) > 1 else ""
        mine = [row for row in shown if row["model"] == model]
        picture = ((picture_name(place), f"Cost against capacity{of_model}, the front labelled"),) if pictures else ()
        sections += [
            Section(
                f"The best count of each card{of_model}",
                ESTIMATED if place == 0 else "",
                selection_grid([row for row in mine if row["fits"]]),
                picture,
                items=tuple(notes) if place == 0 else (),
            ),
            Section(
                f"Cards that do not hold it{of_model}",
                "With the largest count tried.",
                selection_grid([row for row in mine if not row["fits"]]),
            ),
        ]
    return Document(title, f"{fitting} of {len(shown)} cards fit in the counts tried", tuple(sections))


def selection_grid(rows: Sequence[Row]) -> Grid:
    """What a meeting looks at: a line a card."""
    head = (
        "rank#",
        "cards",
        "layout",
        "holds#",
        "headroom#",
        "tokens/s (est.)#",
        "USD/h#",
        "USD/month#",
        "USD/M tokens (est.)#",
        "USD to buy#",
        "W#",
        "tokens/s per W (est.)#",
        "price: date, offer",
        "why not",
    )
    return Grid(head, tuple(_line(row) for row in rows)).without_empty()


def _line(row: Row) -> tuple[str, ...]:
    nodes = f" x {row['nodes']}" if row["nodes"] != 1 else ""
    layout = ""
    if row["tensor_parallel_size"]:
        layout = f"TP {row['tensor_parallel_size']}"
        layout += f" PP {row['pipeline_parallel_size']}" if row["pipeline_parallel_size"] != 1 else ""
        layout += f", {row['replicas']} engines" if row["replicas"] != 1 else ""
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
        _number(row["usd_to_buy"], 0),
        _number(row["watts"], 0),
        _number(row["estimated_tokens_per_joule"], 2),
        price_words(row),
        str(row["reason"]),
    )


def price_words(row: Row) -> str:
    """The basis of a row's price, its date first; that there is none, or that it has no date, is said."""
    if row["price_offer"] is None:
        return "no price known"
    date = "no dated price" if row["price_date"] == "undated" else row["price_date"]
    words = [str(item) for item in (date, row["price_offer"], row["price_region"]) if item]
    return ", ".join(words)


def _number(value: Cell, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, (int, float)) else ""


def terminal(document: Document, *, color: bool) -> str:
    """The document's tables as text."""
    from rich.table import Table
    from rich.text import Text

    from planner.report.text import console_for

    buffer = StringIO()
    console = console_for(buffer, color=color, width=220)
    console.print(Text(f"{document.title}: ") + Text(document.verdict, style="bold"), soft_wrap=True)
    for section in document.sections:
        if section.grid is None or not section.grid.rows:
            continue
        console.print(f"\n{section.title}", soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head in section.grid.head:
            table.add_column(head.removesuffix("#"), justify="right" if head.endswith("#") else "left")
        for row in section.grid.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        for item in section.items:
            console.print(Text(f"note: {item}"), soft_wrap=True)
    console.print(ESTIMATED, soft_wrap=True)
    return buffer.getvalue()
