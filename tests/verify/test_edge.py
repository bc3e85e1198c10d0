"""The recorded batch of plans at a card's edge: its table is what the script makes, and every finished case agrees."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_SPEC = importlib.util.spec_from_file_location("build_edge", ROOT / "scripts" / "build_edge.py")
assert _SPEC is not None
assert _SPEC.loader is not None
edge = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(edge)

RECORDS = {record["name"]: record for record in edge.recorded()}
REFUSED = [name for name, record in RECORDS.items() if record["outcome"] == "refused"]


def test_committed_table_is_the_scripts():
    with (ROOT / "verification" / f"{edge.NAME}.csv").open(encoding="utf-8", newline="") as file:
        committed = list(csv.DictReader(file))
    assert committed == [{key: str(value) for key, value in edge.row(record).items()} for record in RECORDS.values()]


def test_every_finished_case_went_as_predicted():
    found = {name: edge.agreement(record) for name, record in RECORDS.items()}
    unfinished = {name for name, value in found.items() if value == ""}
    assert not {name for name, value in found.items() if value == "no"}
    assert unfinished == {"s8.v1.q25vl-7b.l20.default-pixels", "s2.r1-distill-32b-w4a16.2x4090"}


@pytest.mark.parametrize("name", REFUSED)
def test_reason_is_read_from_vllms_own_words(name):
    assert edge.measured_bottleneck(RECORDS[name]) == RECORDS[name]["case"]["bottleneck"]


def test_a_wrong_prediction_would_be_told():
    record = RECORDS["e01.q25-7b.a10.s1024+1GiB"]
    assert edge.agreement(record | {"case": record["case"] | {"expect": "starts", "bottleneck": None}}) == "no"
    assert edge.agreement(record | {"case": record["case"] | {"bottleneck": "kv_cache"}}) == "no"
