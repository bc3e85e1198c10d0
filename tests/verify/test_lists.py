"""The list of plans that waits for eight GPUs: each is predicted as it says, by commands that verify takes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from planner import api
from planner.cli.launched import request_from_command

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("verify_list", ROOT / "scripts" / "verify_list.py")
assert _SPEC is not None
assert _SPEC.loader is not None
lists = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(lists)
ROWS = lists.rows(ROOT / "verification" / "eight_gpus.csv")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_rows_are_predicted_as_they_say(row):
    beside = api.Request(model="", gpus=lists.gpus_of(row, "h200"), offline=True, calibration="none")
    estimate = api.estimate(request_from_command(f"vllm serve {row['flags']}", beside)).estimate
    assert estimate.verdict == row["expected"], estimate.rejection


def test_each_takes_all_eight():
    assert {lists.gpus_of(row, "h200").rpartition(":")[2] for row in ROWS} == {"8"}


def test_commands_are_ones_that_verify_takes(vplan):
    argv = lists.verify_argv(ROWS[0], "h200", "/nonexistent/vllm")
    done = vplan(*argv)
    assert done.returncode == 4, done.stderr
    assert "NVML" in done.stderr or "vllm" in done.stderr
    assert "Traceback" not in done.stderr
