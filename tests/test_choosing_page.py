"""docs/choosing.md says what the planner says today; speeds are estimates and may move with their model."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from tests.conftest import ROOT

HINT = "run python scripts/generate_choosing_page.py and read the diff"


@pytest.fixture(scope="module")
def pages() -> tuple[str, str]:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "generate_choosing_page.py"))
    return (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8"), script["page"]()


def _table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def _without_estimates(text: str) -> list[list[str]]:
    head, _, *rows = _table(text)
    kept = [place for place, name in enumerate(head) if "(est.)" not in name]
    return [[row[place] for place in kept] for row in (head, *sorted(rows))]


def test_memory_and_prices_are_the_planners(pages: tuple[str, str]) -> None:
    written, made = pages
    assert sorted(_without_estimates(written)) == sorted(_without_estimates(made)), HINT


def test_the_words_are_the_scripts(pages: tuple[str, str]) -> None:
    written, made = ([line for line in page.splitlines() if not line.startswith("|")] for page in pages)
    assert written == made, HINT


def test_what_is_estimated_says_so_and_every_price_has_its_basis(pages: tuple[str, str]) -> None:
    head, _, *rows = _table(pages[1])
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    assert len(cells) == 7
    assert {name for name in head if "requests/s" in name or "1,000 requests" in name} == {
        "requests/s (est.)",
        "USD for 1,000 requests (est.)",
    }
    for row in cells:
        basis = row["price: date, offer, source"]
        if row["USD/h"]:
            assert basis.startswith(("20", "no dated price"))
            assert ";" in basis, "a price without its source"
        else:
            assert basis == "no price known"


def test_the_cheapest_thousand_comes_first_and_undated_prices_after_dated(pages: tuple[str, str]) -> None:
    head, _, *rows = _table(pages[1])
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    keys = [
        (
            not row["USD/h"],
            row["price: date, offer, source"].startswith("no dated"),
            float(row["USD for 1,000 requests (est.)"].replace(",", "") or 0),
        )
        for row in cells
    ]
    assert keys == sorted(keys)
