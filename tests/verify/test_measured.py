"""Every measured boot is predicted again, within the bounds that the runtime ledger promises."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30

_SPEC = importlib.util.spec_from_file_location("build_verification", ROOT / "scripts" / "build_verification.py")
assert _SPEC is not None
assert _SPEC.loader is not None
matrix = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(matrix)

ROWS = list(matrix.measured_rows())


@pytest.fixture(scope="module")
def predictions():
    return [matrix.predict(row) for row in ROWS]


def differences(predictions, field, column):
    return {
        row["name"]: (getattr(estimate.per_gpu, field) - int(float(row[column]))) / GIB
        for row, estimate in zip(ROWS, predictions, strict=True)
        if row[column]
    }


def test_every_boot_that_started_is_predicted_to_start(predictions):
    refused = {row["name"]: found.rejection for row, found in zip(ROWS, predictions, strict=True) if not found.starts}
    assert not refused


def test_cache_memory_is_never_promised_too_high(predictions):
    found = differences(predictions, "available_kv_cache_bytes", "available_kv_bytes")
    assert not {name: value for name, value in found.items() if value > 0.15}


def test_cache_memory_is_close(predictions):
    found = differences(predictions, "available_kv_cache_bytes", "available_kv_bytes")
    assert not {name: value for name, value in found.items() if value < -0.40}
    assert sum(map(abs, found.values())) / len(found) <= 0.10


def test_device_use_is_never_far_too_low(predictions):
    found = differences(predictions, "used_after_startup_bytes", "used_at_end_bytes")
    assert not {name: value for name, value in found.items() if value < -0.20}
    assert sum(map(abs, found.values())) / len(found) <= 0.25


def test_blocks_are_within_half_a_percent_on_nearly_all(predictions):
    off = [
        row["name"]
        for row, found in zip(ROWS, predictions, strict=True)
        if abs(found.kv_cache.num_gpu_blocks - int(row["num_gpu_blocks"])) > 0.005 * int(row["num_gpu_blocks"])
    ]
    assert len(off) <= 0.05 * len(ROWS), off


def test_weights_are_exact_to_a_few_mib(predictions):
    found = differences(predictions, "weights_memory_bytes", "weights_bytes")
    assert not {name: value for name, value in found.items() if abs(value) > 0.02}


def test_what_is_used_before_the_first_buffer_is_known_for_every_number_of_gpus(predictions):
    found = {
        (row["tp"], row["pp"], row["name"]): estimate.per_gpu.cuda_context_bytes
        - (int(row["total_bytes"]) - int(row["init_free_bytes"]))
        for row, estimate in zip(ROWS, predictions, strict=True)
        if row["init_free_bytes"]
    }
    assert {gpus[:2] for gpus in found} == {("1", "1"), ("2", "1"), ("1", "2"), ("4", "1")}
    assert not {name: value for name, value in found.items() if value}


def test_every_rank_is_the_same():
    with (ROOT / "measurements" / "h200_vllm0.26.0_2026-11-22_per_rank.csv").open(encoding="utf-8", newline="") as file:
        ranks = [row for row in csv.DictReader(file) if row["pp"] == "1"]
    first = {row["name"]: row for row in ROWS}
    assert {row["tp"] for row in ranks} == {"2", "4"}
    assert all(row["available_kv_bytes"] == first[row["name"]]["available_kv_bytes"] for row in ranks)


def test_committed_matrix_has_every_boot():
    with (ROOT / "verification" / f"{matrix.NAME}.csv").open(encoding="utf-8", newline="") as file:
        committed = [row["name"] for row in csv.DictReader(file)]
    assert committed == [row["name"] for row in ROWS]
    assert len(committed) >= 40
