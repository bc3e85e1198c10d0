"""The recorded batch of plans at a card's edge: its table is what the script makes, and every finished case agrees."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from planner.units import GIB

ROOT = Path(__file__).resolve().parents[2]

_SPEC = importlib.util.spec_from_file_location("build_edge", ROOT / "scripts" / "build_edge.py")
assert _SPEC is not None
assert _SPEC.loader is not None
edge = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(edge)

RECORDS = {record["name"]: record for record in edge.recorded()}
REFUSED = [name for name, record in RECORDS.items() if record["outcome"] == "refused"]


FOUR_GPUS = {record["name"]: record for record in edge.recorded("tp4_h200_vllm0.26.0")}


@pytest.mark.parametrize("name", [*edge.NAMES, edge.VERIFY])
def test_committed_table_is_the_scripts(name):
    with (ROOT / "verification" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        committed = list(csv.DictReader(file))
    write = edge.verify_row if name == edge.VERIFY else edge.row
    assert committed == [{key: str(value) for key, value in write(record).items()} for record in edge.recorded(name)]


def test_four_gpus_do_as_predicted():
    found = {name: edge.agreement(record) for name, record in FOUR_GPUS.items()}
    assert {name for name, value in found.items() if value != "yes"} == {
        "llama31-8b.tp4.compiled.fused-allreduce",
        "q3-235b-a22b-fp8.tp4",
    }


@pytest.mark.parametrize("name", [name for name, record in FOUR_GPUS.items() if record["outcome"] == "started"])
def test_every_rank_of_four_is_within_the_bounds(name):
    predicted, card = FOUR_GPUS[name]["case"]["predicted"], FOUR_GPUS[name]["free_before_bytes"]
    for rank, before in zip(FOUR_GPUS[name]["ranks"], card, strict=True):
        cache_over = predicted["available_kv_cache_bytes"] - rank["available_kv_cache_bytes"]
        assert -0.40 * GIB < cache_over < 0.02 * GIB
        assert abs(predicted["weights_memory_bytes"] - rank["weights_memory_bytes"]) < 8 << 20
        if rank["rank"] < 2 or "pp2" not in name:
            assert abs(predicted["used_after_startup_bytes"] - (before - rank["free_bytes"])) < 0.12 * GIB


def test_verify_itself_booted_each_way():
    found = {record["name"]: record["answer"]["conclusion"] for record in edge.recorded(edge.VERIFY)}
    assert found["scenario 3 on a T4"] == "refused as predicted"
    assert found["compiled, as planned"] == found["compiled, exact bytes, on an L4"] == "agrees"


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
