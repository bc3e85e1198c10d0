"""The load test that ran against real vLLM on an H200 (verification/loadtest): memory stayed within the plan."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.load.looks import card_peaks, read_looks
from planner.load.rows import read_rows
from planner.load.run import draw
from planner.load.summary import memory
from planner.monitor.planned import read_plan

RECORDED = Path(__file__).resolve().parent.parent.parent / "verification" / "loadtest"


def test_memory_under_load_is_within_the_plan() -> None:
    planned = read_plan(RECORDED / "plan.json")
    found = memory(card_peaks(read_looks(RECORDED / "load.monitor.csv"), (0,)), planned)
    assert found == json.loads((RECORDED / "load.json").read_text())["memory"]
    before = found["cards"][0]["before_bytes"] - found["cards"][0]["reserved_bytes"]
    assert before == planned.used_bytes
    assert sum(size for _, size in planned.lines) == planned.used_bytes
    assert planned.used_interval[1] < found["peak_bytes"] <= planned.peak_bytes
    assert found["within_plan"] is True


def test_every_kind_was_sent_and_answered_without_the_caches() -> None:
    rows = read_rows(RECORDED / "load.csv")
    assert {row.status for row in rows} == {"ok"}
    assert {row.kind for row in rows} == {"text", "image", "video"}
    assert all(row.prompt_tokens == row.text_tokens for row in rows if row.kind == "text")
    # two images of 1024 x 1024 or 1280 x 720 and thirty frames of 448 x 448 have at least these tokens with Qwen2.5-VL
    least = {"text": 0, "image": 2 * 1196, "video": 15 * 256}
    assert all(row.prompt_tokens > least[row.kind] for row in rows)
    last = read_looks(RECORDED / "load.monitor.csv")[-1]
    media = sum({"text": 0, "image": 2, "video": 1}[row.kind] for row in rows)
    assert (float(last["mm_cache_queries"]), float(last["mm_cache_hits"])) == (media, 0)
    assert float(last["prefix_cache_hits"]) == 0


def test_the_monitor_that_was_killed_left_whole_rows() -> None:
    with (RECORDED / "monitor.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 83
    assert all(None not in row and None not in row.values() for row in rows)
    times = [float(row["time"]) for row in rows]
    assert all(0 < later - sooner < 4 for sooner, later in pairwise(times))


def test_another_plan_can_be_held_against_it_later(tmp_path: Path) -> None:
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    planned = read_plan(RECORDED / "plan.json").model_copy(update={"peak_bytes": 39 << 30})
    picture = tmp_path / "load.png"
    picture.unlink()
    assert draw(tmp_path / "load.csv", planned, (0,)) == picture
    assert picture.read_bytes().startswith(b"\x89PNG")
    tight = planned.model_copy(update={"peak_bytes": 37 << 30})
    draw(tmp_path / "load.csv", tight, (0,))
    assert json.loads((tmp_path / "load.json").read_text())["memory"]["within_plan"] is False
    draw(tmp_path / "load.csv", planned, (9,))
    assert json.loads((tmp_path / "load.json").read_text())["memory"]["within_plan"] is None
    (tmp_path / "load.monitor.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="not the CSV of a monitor"):
        draw(tmp_path / "load.csv")
