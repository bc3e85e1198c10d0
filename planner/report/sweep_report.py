"""The files of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from planner.report.document import Document, Grid, Section, html, markdown
from planner.report.rows import Row
from planner.report.schema import table_csv
from planner.report.sweep import axes_of, free_bytes
from planner.report.sweep_figure import heatmap
from planner.report.theme import DARK, LIGHT, png
from planner.units import format_gib


def sweep_report(rows: Sequence[Row], plans: str) -> dict[str, bytes]:
    """sweep.csv, sweep.md, sweep.html, the heatmap in both themes, and `plans` as frontier.json."""
    first = rows[0]
    pictures = {"sweep.png": png(heatmap(rows, LIGHT), LIGHT), "sweep_dark.png": png(heatmap(rows, DARK), DARK)}
    starting = sum(row["verdict"] == "starts" for row in rows)
    xs, ys = axes_of(rows)
    cells = {(str(row["x_value"]), str(row["y_value"])): row for row in rows}
    grid = Grid(
        (f"{first['y_flag']} by {first['x_flag']}", *(f"{x}#" for x in xs)),
        tuple((y, *(_cell(cells[x, y]) for x in xs)) for y in reversed(ys)),
    )
    frontier = [row for row in rows if row["frontier"]]
    points = Grid(
        (str(first["x_flag"]), str(first["y_flag"]), "requests#", "tokens#", "free on the card#"),
        tuple(
            (
                str(row["x_value"]),
                str(row["y_value"]),
                f"{row['max_concurrency']:,.2f}",
                f"{row['capacity_tokens']:,}",
                _free(row),
            )
            for row in frontier
        ),
    )
    document = Document(
        f"{first['model']} on {first['gpus']}, vLLM {first['vllm_version']}",
        f"{starting} of {len(rows)} pairs start",
        (
            Section(
                "Requests held at once",
                "The line is the frontier; * starts, but has no room for a full media batch.",
                grid,
                (("sweep", f"{first['y_flag']} against {first['x_flag']}"),),
            ),
            Section(
                "Plans on the frontier",
                "frontier.json has them whole.",
                points,
                code="\n\n".join(str(row["command"]) for row in frontier),
            ),
        ),
    )
    return {
        "sweep.csv": table_csv("sweep", rows).encode(),
        "sweep.md": markdown(document).encode(),
        "sweep.html": html(document, pictures).encode(),
        "frontier.json": plans.encode(),
        **pictures,
    }


def _cell(row: Row) -> str:
    if row["verdict"] != "starts":
        return f"no: {row['bottleneck']}"
    return f"{row['max_concurrency']:,.2f}{'' if row['fits_with_media'] else ' *'}"


def _free(row: Row) -> str:
    free = free_bytes(row)
    return "" if free is None else format_gib(free)
