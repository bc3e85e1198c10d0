"""Two hundred thousand spoilt inputs, the same every time: each is answered or told in one line, none hangs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from campaign import Report, attempt, campaign
from targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SHARDS = 8


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("target", TARGETS)
def test_spoilt_inputs(target, shard):
    report = campaign(target, shard, TARGETS[target][2] // SHARDS)
    assert report.inputs == TARGETS[target][2] // SHARDS, report.broken[0]
    assert not report.broken, report.broken[0]


def test_a_run_has_two_hundred_thousand():
    assert sum(count // SHARDS * SHARDS for _, _, count in TARGETS.values()) >= 200_000


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_what_once_broke_stays_told(path):
    entry = json.loads(path.read_text(encoding="utf-8"))
    report = Report(entry["target"])
    attempt(entry["target"], entry["input"], report)
    assert not report.broken, report.broken[0]


def test_a_break_would_be_seen(monkeypatch):
    def broken(text: str) -> None:
        raise KeyError(text)

    monkeypatch.setitem(TARGETS, "gpus", (broken, TARGETS["gpus"][1], 8))
    report = campaign("gpus", 0, 1)
    assert report.broken[0][0].startswith("outside: KeyError")
