"""A report as sections of text, tables and pictures, written as Markdown or as one HTML page that needs no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from planner.report.tables import code_block, escaped

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1a1a;--faint:#d9d9d9;--soft:#f5f6f8;--good:#00694b;--bad:#b00020}
@media (prefers-color-scheme:dark){:root{--paper:#14171c;--ink:#ececec;--faint:#3a3f47;--soft:#1d2128;
--good:#5fd3ac;--bad:#ff8a80}}
body{background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,"Noto Sans CJK SC",sans-serif;margin:0 auto;max-width:84rem;padding:1.5rem}
p,li,pre{max-width:66rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--faint)}
img{max-width:min(100%,66rem);height:auto;display:block;margin:1rem 0}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:left;border-bottom:1px solid var(--faint);vertical-align:top}
th{background:var(--soft)}td.number,th.number{text-align:right}td{white-space:nowrap}
td.long{white-space:normal;min-width:14rem}
pre{background:var(--soft);padding:.8rem;overflow-x:auto;white-space:pre-wrap}
.starts{color:var(--good);font-weight:bold}.rejected{color:var(--bad);font-weight:bold}
"""

_LONG = 36
"""Letters from which a cell of a page may break into lines."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as shown: headings and cells as text; a heading that ends in "#" is a column of numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def without_empty(self) -> Grid:
        """Without columns that have no text in any row."""
        kept = [place for place in range(len(self.head)) if any(row[place] for row in self.rows)]
        return Grid(
            tuple(self.head[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in self.rows)
        )


@dataclass(frozen=True, slots=True)
class Section:
    """`pictures` are names of PNG files without theme and ending, with their description."""

    title: str
    text: str = ""
    grid: Grid | None = None
    pictures: tuple[tuple[str, str], ...] = ()
    code: str = ""
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A verdict of "starts" or "rejected" is shown in colour; any other text plainly."""

    title: str
    verdict: str
    sections: tuple[Section, ...]


def markdown(document: Document) -> str:
    lines = [f"# {escaped(document.title)}", "", f"**{escaped(document.verdict)}**"]
    for section in document.sections:
        lines += ["", f"## {escaped(section.title)}"]
        if section.text:
            lines += ["", escaped(section.text)]
        for name, description in section.pictures:
            lines += ["", f"![{escaped(description)}]({name}.png)"]
        if section.items:
            lines += ["", *(f"- {escaped(item)}" for item in section.items)]
        if section.code:
            lines += ["", *code_block(section.code)]
        if section.grid:
            lines += ["", *markdown_grid(section.grid)]
    return "\n".join(lines) + "\n"


def markdown_grid(grid: Grid) -> list[str]:
    lines = ["| " + " | ".join(escaped(_title(head)) for head in grid.head) + " |"]
    lines.append("| " + " | ".join("---:" if _is_number(head) else "---" for head in grid.head) + " |")
    lines += ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in grid.rows]
    return lines


def html(document: Document, pngs: Mapping[str, bytes]) -> str:
    """One page: style and pictures are inside, light and dark follow the reader's system.

    `pngs`: NAME.png and NAME_dark.png for every picture that the sections name.
    """
    verdict = document.verdict.partition(":")[0]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f'<link rel="icon" href="data:,"><title>{escape(document.title)}</title><style>{_CSS}</style></head><body>',
        f'<h1>{escape(document.title)}</h1><p class="{escape(verdict)}">{escape(document.verdict)}</p>',
    ]
    for section in document.sections:
        parts.append(f"<section><h2>{escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escape(section.text)}</p>")
        parts += [_picture(name, description, pngs) for name, description in section.pictures]
        if section.items:
            parts.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in section.items) + "</ul>")
        if section.code:
            parts.append(f"<pre><code>{escape(section.code)}</code></pre>")
        if section.grid:
            parts.append(_html_grid(section.grid))
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _picture(name: str, description: str, pngs: Mapping[str, bytes]) -> str:
    light, dark = (
        f"data:image/png;base64,{b64encode(pngs[file]).decode()}" for file in (f"{name}.png", f"{name}_dark.png")
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(description)}"></picture>'
    )


def _html_grid(grid: Grid) -> str:
    numbers = [_is_number(head) for head in grid.head]
    rows = [_html_row("th", [_title(head) for head in grid.head], numbers)]
    rows += [_html_row("td", row, numbers) for row in grid.rows]
    return f'<div class="table"><table>{"".join(rows)}</table></div>'


def _html_row(tag: str, cells: Sequence[str], numbers: Sequence[bool]) -> str:
    inside = "".join(
        f"<{tag}{_class(tag, cell, number)}>{escape(cell)}</{tag}>" for cell, number in zip(cells, numbers, strict=True)
    )
    return f"<tr>{inside}</tr>"


def _class(tag: str, cell: str, number: bool) -> str:
    if number:
        return " class=number"
    return " class=long" if tag == "td" and len(cell) > _LONG else ""


def _is_number(head: str) -> bool:
    return head.endswith("#")


def _title(head: str) -> str:
    return head.removesuffix("#").strip()
