"""Plans side by side: rows of the `compare` table, and the same as text, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from planner.memory.result import Estimate
from planner.report.document import Document, Grid, Section
from planner.report.rows import Row, who
from planner.report.schema import LEDGER_COLUMNS
from planner.units import GIB

_CACHE = ("bytes_per_token", "num_gpu_blocks", "capacity_tokens")


def compare_rows(plans: Sequence[tuple[str, Estimate]]) -> list[Row]:
    """A row a plan and term, in the order of the ledgers; the difference is against the first plan."""
    rows: list[Row] = []
    for place, (label, estimate) in enumerate(plans):
        for name in (*(column.name for column in LEDGER_COLUMNS), *_CACHE):
            value, first = _value(estimate, name), _value(plans[0][1], name)
            known = place > 0 and value is not None and first is not None
            rows.append(
                {
                    "plan": label,
                    **who(estimate),
                    "term": name,
                    "value": value,
                    "difference": (value or 0) - (first or 0) if known else None,
                }
            )
    return rows


def _value(estimate: Estimate, name: str) -> int | None:
    value = getattr(estimate.kv_cache if name in _CACHE else estimate.per_gpu, name, None)
    return value if isinstance(value, int) else None


def compare_document(plans: Sequence[tuple[str, Estimate]], *, pictures: bool = False) -> Document:
    """Terms down, plans across; after the first, each figure with its difference in brackets.

    `pictures`: compare.png and compare_difference.png stand beside the document.
    """
    rows = compare_rows(plans)
    cells = {(row["plan"], row["term"]): row for row in rows}
    labels = [label for label, _ in plans]
    terms = list(dict.fromkeys(str(row["term"]) for row in rows))
    grid = Grid(
        ("term", *(f"{label}#" for label in labels)),
        tuple((_named(term), *(_shown(cells[label, term], term) for label in labels)) for term in terms),
    )
    verdicts = Grid(
        ("plan", "model", "cards", "vLLM", "verdict", "why not"),
        tuple(
            (
                label,
                item.model,
                item.gpus,
                item.vllm_version,
                item.verdict,
                item.rejection.message if item.rejection else "",
            )
            for label, item in plans
        ),
    )
    starting = sum(item.starts for _, item in plans)
    return Document(
        "Plans side by side",
        f"{starting} of {len(plans)} plans start",
        (
            Section("Plans", "", verdicts, (("compare", "What the device holds under each plan"),) if pictures else ()),
            Section(
                "Difference by term",
                "GiB on one GPU, tokens and blocks; in brackets against the first plan.",
                grid,
                (("compare_difference", "Difference of every term to the first plan"),) if pictures else (),
            ),
        ),
    )


def _named(term: str) -> str:
    return f"{term.removesuffix('_bytes')}, GiB" if term.endswith("_bytes") else term


def _shown(row: Row, term: str) -> str:
    value, difference = row["value"], row["difference"]
    if not isinstance(value, int):
        return ""
    in_gib = term.endswith("_bytes")
    text = f"{value / GIB:.3f}" if in_gib else f"{value:,}"
    if isinstance(difference, int) and difference:
        text += f" ({difference / GIB:+.3f})" if in_gib else f" ({difference:+,})"
    return text


def compare_files(plans: Sequence[tuple[str, Estimate]]) -> dict[str, bytes]:
    """compare.csv, compare.md, compare.html and both pictures in both themes. Needs the `report` extra."""
    from planner.report import compare_figure
    from planner.report.document import html, markdown
    from planner.report.schema import table_csv
    from planner.report.theme import DARK, LIGHT, png

    rows, document = compare_rows(plans), compare_document(plans, pictures=True)
    pictures: dict[str, bytes] = {}
    for theme, suffix in ((LIGHT, ""), (DARK, "_dark")):
        pictures[f"compare{suffix}.png"] = png(compare_figure.plans(plans, theme), theme)
        pictures[f"compare_difference{suffix}.png"] = png(compare_figure.differences(rows, theme), theme)
    return {
        "compare.csv": table_csv("compare", rows).encode(),
        "compare.md": markdown(document).encode(),
        "compare.html": html(document, pictures).encode(),
        **pictures,
    }


def compare_text(document: Document, *, color: bool = False) -> str:
    from rich.table import Table
    from rich.text import Text

    from planner.report.text import console_for

    buffer = StringIO()
    console = console_for(buffer, color=color, width=160)
    console.print(Text(f"{document.title}: {document.verdict}", style="bold"))
    for section in document.sections:
        assert section.grid is not None
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head in section.grid.head:
            table.add_column(head.removesuffix("#"), justify="right" if head.endswith("#") else "left")
        for row in section.grid.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(f"\n{section.title}. {section.text}".rstrip(" ."))
        console.print(table)
    return buffer.getvalue()
