"""Peak activation: tensor by tensor, against the profile runs of real boots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner.memory.activation import activation_stages, peak_activation_bytes
from planner.memory.device import Boot
from planner.memory.program import LiveTensor, Program, Stage
from planner.units import KIB, MIB
from tests.memory.boots import BOOTS, label, named, set_up

REPLAY_SLACK = 48 * KIB
LINEAR_SLACK = 3 * MIB
KNOWN_LOOSE = {"nemotron3-nano-l8": MIB // 2 + 4 * KIB}


def _sampled(boot: dict[str, Any]) -> tuple[int, int]:
    tokens = boot["args"]["max_num_batched_tokens"]
    return tokens, min(tokens, boot["args"]["max_num_seqs"])


@pytest.mark.parametrize("boot", BOOTS, ids=label)
def test_replayed_peak_is_what_the_engine_measures(boot: dict[str, Any]) -> None:
    peak = Boot(*set_up(boot)).peak_activation_bytes
    assert abs(peak - boot["peak_activation_bytes"]) <= KNOWN_LOOSE.get(boot["name"], REPLAY_SLACK)


@pytest.mark.parametrize("boot", BOOTS, ids=label)
def test_stages_give_the_same_peak(boot: dict[str, Any]) -> None:
    peak = peak_activation_bytes(activation_stages(*set_up(boot)), *_sampled(boot))
    assert abs(peak - boot["peak_activation_bytes"]) <= LINEAR_SLACK


def test_stages_take_arrays() -> None:
    stages = activation_stages(*set_up(named("q25-7b-l4")))
    tokens, seqs = np.array([512, 2048, 8192, 16384]), np.array([8, 1024, 256, 512])
    peaks = peak_activation_bytes(stages, tokens, seqs)
    assert peaks.tolist() == [peak_activation_bytes(stages, int(t), int(s)) for t, s in zip(tokens, seqs, strict=True)]


def test_the_highest_moment_of_a_gated_mlp_is_four_hidden_states_and_three_inner_ones() -> None:
    model, share, config = set_up(named("q25-7b-l4"))
    stages = activation_stages(model, share, config)
    highest = max(stages, key=lambda stage: stage.bytes(8192, 256))
    assert highest.name == "layer 1: MLP"
    hidden, inner = model.text.hidden_size, model.text.intermediate_size
    assert sum(tensor.bytes_per_token for tensor in highest.tensors) == 2 * (4 * hidden + 3 * inner)
    assert {"cuBLAS workspace", "cuBLASLt workspace"} <= {tensor.name for tensor in highest.tensors}


def test_many_sequences_make_the_sampler_the_highest_moment() -> None:
    stages = activation_stages(*set_up(named("q25-7b-l4.s1024.t2048")))
    assert max(stages, key=lambda stage: stage.bytes(2048, 1024)).name == "sampler"


def test_compilation_sees_an_embedding_table() -> None:
    model, share, config = set_up(named("cg.q3-8b-l4"))
    highest = max(activation_stages(model, share, config), key=lambda stage: stage.bytes(8192, 256))
    assert highest.name == "compilation: embedding kernel"
    assert any(tensor.constant_bytes == 151936 * 4096 * 2 for tensor in highest.tensors)


def test_a_program_keeps_only_moments_that_can_be_highest() -> None:
    program = Program()
    program.stage("first")
    small = program.alloc("small", token=2)
    program.free(program.alloc("scratch", seq=8))
    program.stage("second")
    program.free(program.alloc("large", token=4), small)
    stages = program.stages()
    assert stages == (
        Stage("first", (LiveTensor("small", 2), LiveTensor("scratch", 0, 8))),
        Stage("second", (LiveTensor("small", 2), LiveTensor("large", 4))),
    )
    assert peak_activation_bytes(stages, 1, 100) == 802
    assert peak_activation_bytes(stages, 1000, 1) == 6000
