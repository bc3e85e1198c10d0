"""The HTML page asks nothing of the network and takes names as text; Markdown keeps its tables whole."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from planner.memory.assess import Assessment
from planner.report.bundle import Content, plan_report
from planner.report.document import Document, Grid, Section, html, markdown

HOSTILE = "<script>alert(1)</script>\"'|`a`\n![x](http://evil/x.png)"


class _Page(HTMLParser):
    """Tags in order, and every address that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images_without_text = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in ("src", "srcset", "href", "data", "action") if name in values]
        self.images_without_text += tag == "img" and not values.get("alt")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def files(vision_plan: Assessment) -> dict[str, bytes]:
    return plan_report(Content(vision_plan, "vllm serve x", concurrencies=(1, 4), breakdowns=("module",)))


def test_page_holds_everything(files: dict[str, bytes]) -> None:
    page = _Page(files["report.html"].decode())
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.images_without_text == 0
    assert "script" not in page.tags
    assert page.tags.count("img") == len([name for name in files if name.endswith("_dark.png")])


def test_page_and_tables_name_the_same_figures(files: dict[str, bytes], vision_plan: Assessment) -> None:
    per_gpu = vision_plan.estimate.per_gpu
    assert per_gpu is not None
    for name in ("report.html", "report.md", "ledger.csv"):
        text = files[name].decode().replace(",", "") if name != "ledger.csv" else files[name].decode()
        assert str(per_gpu.weights_memory_bytes) in text
        assert str(per_gpu.used_after_startup_bytes) in text


def test_a_report_is_the_same_bytes_every_time(files: dict[str, bytes], vision_plan: Assessment) -> None:
    again = plan_report(Content(vision_plan, "vllm serve x", concurrencies=(1, 4), breakdowns=("module",)))
    assert again == files


def test_markdown_names_pictures_that_exist(files: dict[str, bytes]) -> None:
    linked = [
        line.rpartition("(")[2].rstrip(")")
        for line in files["report.md"].decode().splitlines()
        if line.startswith("![")
    ]
    assert linked
    assert all(name in files for name in linked)


def test_hostile_text_stays_text() -> None:
    document = Document(
        HOSTILE, HOSTILE, (Section(HOSTILE, HOSTILE, Grid((HOSTILE,), ((HOSTILE,),)), items=(HOSTILE,), code=HOSTILE),)
    )
    page = _Page(html(document, {}))
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    rows = [line for line in markdown(document).splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert all(line.replace("\\|", "").count("|") == 2 for line in rows)
