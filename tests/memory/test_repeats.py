"""Leaving out the middle of repeated layers."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from planner.memory import forward, forward_parts
from planner.memory.device import Boot
from planner.memory.layers import decoder_layers
from planner.memory.repeats import representatives
from planner.once import once
from tests.memory.boots import named, set_up


def test_short_sequences_stay_whole() -> None:
    assert representatives("abcde") == (0, 1, 2, 3, 4)
    assert representatives("aaaaa") == (0, 1, 2, 3, 4)


def test_runs_keep_their_ends_and_their_parity() -> None:
    assert representatives("a" * 80) == (0, 1, 78, 79)
    assert representatives("a" * 81) == (0, 1, 78, 79, 80)


def test_groups_of_layers_are_runs_too() -> None:
    kept = representatives("d" + "aaab" * 12)
    assert "".join(("d" + "aaab" * 12)[i] for i in kept) == "d" + "aaab" * 4


@pytest.mark.parametrize("name", ["q3-0.6b", "q25-0.5b"])
def test_a_whole_model_replays_as_all_its_layers_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, share, config = set_up(named(name))
    assert len(forward.Forward(model, share, config).layers) < len(share.layers)

    def reserved() -> tuple[int, int]:
        replayed = Boot(replace(model), share, config)
        return replayed.peak_activation_bytes, replayed.finish([2**30] * 4, (config.block_size,), 1000)

    short = reserved()
    monkeypatch.setattr(forward_parts, "replayed_layers", decoder_layers)
    assert reserved() == short


def test_once_answers_by_identity() -> None:
    asked: list[Any] = []

    @once
    def size(thing: list[int]) -> int:
        asked.append(thing)
        return len(thing)

    one, other = [1, 2], [1, 2]
    assert (size(one), size(one), size(other)) == (2, 2, 2)
    assert len(asked) == 2
