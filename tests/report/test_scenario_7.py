"""Qwen2.5-VL-72B-Instruct-AWQ on eight T4: all that guides promise of a "model analyzer", from `vplan report`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner.cli.main import main
from planner.report.rows import BREAKDOWNS
from planner.units import GIB

FLAGS = [
    "--model", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "--gpus", "t4:8", "--offline", "--tensor-parallel-size", "8",
    "--max-model-len", "8192", "--gpu-memory-utilization", "0.75",
]  # fmt: skip
ASKED = ["--dtypes", "auto,bfloat16,float16,kv:fp8", "--batch-sizes", "1,16,64", "--concurrency", "1,4,16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenario") / "made" / "here"
    assert main(["report", *FLAGS, *ASKED, "--breakdown-by", "layer,module,dtype,rank", "--output-dir", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8").replace("\\", "")


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()))


def test_the_weights_are_41_gib_and_not_36(folder: Path) -> None:
    rank = next(row for row in _rows(folder, "breakdown") if row["by"] == "rank")
    assert rank["part"] == "0-7"
    assert 40 < 8 * int(rank["parameter_bytes"]) / GIB < 42


@pytest.mark.parametrize("by", BREAKDOWNS)
def test_every_breakdown_is_in_both_and_adds_up(by: str, folder: Path, markdown: str) -> None:
    rows = [row for row in _rows(folder, "breakdown") if row["by"] == by]
    whole = sum(int(row["bytes"]) for row in _rows(folder, "breakdown") if row["by"] == "rank")
    assert sum(int(row["bytes"]) for row in rows) == whole
    section = markdown.partition(f"## Weights by {by}")[2].partition("\n## ")[0]
    for row in rows:
        assert f"| {row['part']} | {row['component']} | {int(row['parameter_bytes']):,} |" in section
    if by == "layer":
        assert [row["part"] for row in rows if row["part"].startswith("layer ")] == [f"layer {n}" for n in range(80)]
    assert {"int32", "float16"} <= {row["part"] for row in rows} or by != "dtype"


def test_dtypes_side_by_side_with_the_refusals_of_a_t4(folder: Path, markdown: str) -> None:
    rows = {row["value"]: row for row in _rows(folder, "variants") if row["flag"] == "dtype"}
    assert list(rows) == ["auto", "bfloat16", "float16", "kv:fp8"]
    assert rows["auto"]["dtype"] == rows["float16"]["dtype"] == "float16"
    assert rows["bfloat16"]["bottleneck"] == "dtype_capability"
    assert rows["kv:fp8"]["verdict"] == "rejected"
    assert rows["kv:fp8"]["bottleneck"] in ("kv_cache_dtype", "attention_backend")
    section = markdown.partition("## Other values of dtype")[2].partition("\n## ")[0]
    for row in rows.values():
        assert f"| {row['value']} | {row['verdict']} |" in section
        assert row["message"][:60] in section


def test_batch_sizes_side_by_side(folder: Path, markdown: str) -> None:
    rows = [row for row in _rows(folder, "variants") if row["flag"] == "max_num_seqs"]
    assert [row["value"] for row in rows] == [row["max_num_seqs"] for row in rows] == ["1", "16", "64"]
    states = [int(row["runner_state_bytes"]) for row in rows]
    assert states == sorted(states)
    assert states[0] < states[-1]
    section = markdown.partition("## Other values of max_num_seqs")[2].partition("\n## ")[0]
    for row in rows:
        assert f"| {row['value']} | {row['verdict']} |" in section
        assert f"{int(row['capacity_tokens']):,}" in section


def test_memory_against_load(folder: Path, markdown: str) -> None:
    rows = _rows(folder, "load")
    assert {row["concurrency"] for row in rows} == {"1", "4", "16"}
    one = {row["max_model_len"]: int(row["kv_cache_bytes"]) for row in rows if row["concurrency"] == "1"}
    for row in rows:
        assert int(row["kv_cache_bytes"]) == int(row["concurrency"]) * one[row["max_model_len"]]
    assert {row["fits_budget"] for row in rows} == {"True", "False"}
    head = "| max_model_len | 1 at once | 4 at once | 16 at once |"
    section = markdown.partition("## Memory against length and concurrency")[2].partition("\n## ")[0]
    assert head in section
    for row in rows:
        assert f"{int(row['engine_bytes']) / GIB:.2f}" in section


def test_pictures_of_everything(folder: Path, markdown: str) -> None:
    names = [
        "ledger",
        "load",
        "media",
        "variants_dtype",
        "variants_max_num_seqs",
        *(f"breakdown_{by}" for by in BREAKDOWNS),
    ]
    for name in names:
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (folder / f"{name}_dark.png").exists()
        assert f"({name}.png)" in markdown
