"""Hostile names in what people open: the HTML page, CSV, Markdown, pictures, and the text on a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hostile import HOSTILE, REFUSED
from markdown_it import MarkdownIt

from planner import api
from planner.cli.main import main
from planner.cli.output import write
from planner.engine.args import EngineArgs
from planner.foreign import table_cell, visible
from planner.memory.assess import Assessment
from planner.report.bundle import Content, plan_report
from planner.report.compare import compare_document, compare_rows, compare_text
from planner.report.document import Document, Grid, Section, html, markdown
from planner.report.matrix import Matrix
from planner.report.schema import table_csv
from planner.report.tables import csv_text, escaped, estimate_csv, estimate_markdown
from planner.report.text import estimate_text
from planner.search.select_fits import Fit

EVERY = {**HOSTILE, **REFUSED}
TEXTS = pytest.mark.parametrize("text", EVERY.values(), ids=EVERY.keys())
FORMULA = tuple("=+-@\t\r")


@pytest.fixture(scope="module")
def plan() -> Assessment:
    flags = EngineArgs(max_model_len=4096)
    return api.estimate(api.Request(model="Qwen/Qwen2.5-0.5B-Instruct", gpus="l20:1", offline=True, args=flags))


def named(plan: Assessment, text: str) -> Assessment:
    """The plan with the text as its model, its cards, and in a warning."""
    changed = {"model": text, "gpus": text, "warnings": (text,)}
    return replace(plan, estimate=plan.estimate.model_copy(update=changed))


class Page(HTMLParser):
    """Tags, attributes that run code or load something, and the text of each element that holds some."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.active: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.append("")
        self.active += [
            (name, value)
            for name, value in attrs
            if name.startswith("on") or (name in ("src", "srcset", "href", "action", "data") and value != "data:,")
        ]

    def handle_endtag(self, tag: str) -> None:
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def document_of(text: str) -> Document:
    grid = Grid(("name", "count#"), ((text, text),))
    return Document(text, text, (Section(text, text, grid, items=(text,), code=text),))


@TEXTS
def test_page(text):
    page, plain = Page(html(document_of(text), {})), Page(html(document_of("x"), {}))
    assert page.tags == plain.tags
    assert "script" not in page.tags
    assert page.active == []
    wanted = ["\n".join(text.split("\r")) if found == "x" else found for found in plain.texts]
    assert [found.replace("\r", "\n") for found in page.texts] == wanted


def _tokens(text: str):
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in parser.parse(text):
        yield token
        yield from token.children or ()


@TEXTS
def test_markdown(text):
    """Read by a Markdown parser that lets HTML through: the same blocks as for a plain text, no link, no HTML."""
    found, plain = list(_tokens(markdown(document_of(text)))), list(_tokens(markdown(document_of("x"))))
    kinds = {token.type for token in found}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "em_open", "code_inline"}
    blocks = ("heading_open", "table_open", "tr_open", "td_open", "th_open", "fence", "code_block", "hr")
    assert [t.type for t in found if t.type in blocks] == [t.type for t in plain if t.type in blocks]
    (fence,) = (token for token in found if token.type == "fence")
    assert fence.content.rstrip("\n") == text.replace("\0", "\ufffd").replace("\r", "\n").rstrip("\n")
    flat = visible(" ".join(text.split()))
    cells = [b for a, b in pairwise(found) if a.type == "td_open"]
    for cell in cells:
        assert "".join(child.content for child in cell.children) == flat


@TEXTS
def test_escaped_is_one_line_of_text(text):
    flat = escaped(text)
    assert "\n" not in flat
    assert "".join(
        t.content for t in _tokens(f"| a |\n| - |\n| {flat} |") if t.type in ("text", "text_special")
    ).endswith(visible(" ".join(text.split())))


@TEXTS
def test_csv(text, plan):
    rows = [{"plain": "x", "foreign": text, "number": -1.5}, {"plain": "y", "foreign": f"z{text}", "number": None}]
    read = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert read[0] == ["plain", "foreign", "number"]
    assert read[1:] == [["x", table_cell(text), "-1.5"], ["y", table_cell(f"z{text}"), ""]]
    assert not [cell for row in read for cell in row if cell.startswith(FORMULA) and cell != "-1.5"]
    (row,) = csv.DictReader(io.StringIO(estimate_csv(named(plan, text).estimate), newline=""))
    assert (row["model"], row["gpus"]) == (table_cell(text), table_cell(text))
    compared = compare_rows([(text, named(plan, text).estimate), ("b", plan.estimate)])
    for row in csv.reader(io.StringIO(table_csv("compare", compared), newline="")):
        assert not [cell for cell in row if cell.startswith(FORMULA) and not re.fullmatch(r"-?[0-9.]+", cell)]


@TEXTS
def test_texts_of_a_plan(text, plan, capsys):
    """Console text takes no markup of rich's from it; what reaches a terminal has no order to it."""
    estimate = named(plan, text).estimate
    shown = estimate_text(estimate, text, color=False)
    if text not in REFUSED.values():
        assert re.sub(r"\s+", "", text) in re.sub(r"\s+", "", shown)
    compare_text(compare_document([(text, estimate), ("b", plan.estimate)]))
    write(shown, None)
    printed = capsys.readouterr().out
    assert all(char.isprintable() or char in "\n\t" for char in printed.replace("\u3000", ""))
    kinds = {token.type for token in _tokens(estimate_markdown(estimate))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence", "code_block"}


@TEXTS
def test_matrix(text, capsys):
    """A model, a refusal and a card of any name in each form."""
    fit = Fit(gpu=text, count=2, tensor_parallel_size=2, replicas=1, evidence="bounds")
    found = Matrix("0.26.0", "a load", (text, "L20"), {text: (fit,), f"{text}2": text})
    lines = found.text("text").split("\n")
    assert len(lines) == 8
    write(found.text("text"), None)
    printed = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in printed.replace("\u3000", ""))
    for row in csv.reader(io.StringIO(found.text("csv"), newline="")):
        assert not [cell for cell in row if cell.startswith(FORMULA)]
    kinds = {token.type for token in _tokens(found.text("markdown"))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence", "code_block"}
    assert {row["model"] for row in json.loads(found.text("json"))["rows"]} == {text, f"{text}2"}


@pytest.mark.parametrize("name", ["mathtext", "markup end", "formula", "rich", "letters", "escape", "very long"])
def test_whole_report(name, plan):
    text = EVERY[name]
    files = plan_report(
        Content(named(plan, text), f"vllm serve {text}", breakdowns=("module",), concurrencies=(1,), lengths=(1024,))
    )
    page = Page(files["report.html"].decode())
    assert "script" not in page.tags
    assert all(kind in ("src", "srcset") and value.startswith("data:image/png") for kind, value in page.active)
    for file, content in files.items():
        if file.endswith(".csv"):
            cells = [cell for row in csv.reader(io.StringIO(content.decode(), newline="")) for cell in row]
            assert not [c for c in cells if c.startswith(FORMULA) and not re.fullmatch(r"-?[0-9.e-]+", c)]


CARD = """\
name: {name}
aliases: []
device_name: {device}
compute_capability: [8, 9]
total_memory_bytes: 47810084864
memory_evidence: user
"""


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("half a pair", "very long")])
@pytest.mark.parametrize("form", ["text", "json", "csv", "markdown"])
def test_card_of_a_user_catalog(name, form, tmp_path, capsys):
    """A catalog from elsewhere may call a card anything: it is told as text or refused in one printable line."""
    hostile = json.dumps(EVERY[name] + " card")
    catalog = tmp_path / "hardware.yaml"
    catalog.write_text(CARD.format(name=hostile, device=hostile), encoding="utf-8")
    code = main([
        "estimate", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--gpus", f"{EVERY[name]} card:1", "--offline",
        "--max-model-len", "2048", "--hardware-catalog", str(catalog), "--format", form,
    ])  # fmt: skip
    out, err = capsys.readouterr()
    assert code in (0, 2), err
    assert all(char.isprintable() or char in "\n\t\u3000" for char in out)
    if code:
        assert err.startswith("vplan: ")
        assert err.removesuffix("\n").isprintable()
        assert "internal error" not in err
    elif form == "csv":
        assert not [
            cell
            for row in csv.reader(io.StringIO(out, newline=""))
            for cell in row
            if cell.startswith(FORMULA) and not re.fullmatch(r"-?[0-9.]+", cell)
        ]
    elif form == "json":
        assert json.loads(out)["schema"] == "vplan.estimate/1"
