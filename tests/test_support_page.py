"""docs/support.md says what the registry, the golden rows and the measurements say today."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from planner.model.registry import ARCHITECTURES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "generate_support_page.py"))


def test_page_is_up_to_date(script: dict[str, Any]) -> None:
    written = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert written == script["page"](), "run python scripts/generate_support_page.py and read the diff"


def test_page_names_every_architecture() -> None:
    page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    served = json.loads((ROOT / "scripts" / "vllm_architectures.json").read_text())
    names = {*ARCHITECTURES, *served["text"], *served["multimodal"]}
    assert not [name for name in names if f"`{name}`" not in page]


def test_evidence_is_never_more_than_what_is_kept(script: dict[str, Any]) -> None:
    assert script["evidence"](0, 0) == "derived from source"
    assert script["evidence"](1, 0) == "exact: 1 row"
    assert script["evidence"](3, 2) == "measured: 2 boots; exact: 3 rows"
