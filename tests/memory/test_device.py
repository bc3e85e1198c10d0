"""What the device holds after startup, against real boots step by step."""

from __future__ import annotations

from typing import Any

import pytest

from planner.memory.device import Boot, cuda_context_bytes, non_torch_bytes
from planner.units import MIB
from tests.memory.boots import EAGER, label, set_up

KNOWN_LOOSE = {"gptoss-l4": 140, "synth-wide-attn-l4": 60, "q35-27b-l4.text": 80, "nemotron3-nano-l8": 32}


def _finished(boot: dict[str, Any], replayed: Boot, block_size: int) -> int:
    groups = boot["kv_groups"]
    tensors = groups[0] if len(groups) == 1 else max(groups)
    sizes = [boot["kv_tensor_bytes"] // tensors] * tensors
    return replayed.finish(sizes, (block_size,) * len(groups), boot["num_gpu_blocks"])


@pytest.mark.parametrize("boot", EAGER, ids=label)
def test_reserved_after_the_profile_run(boot: dict[str, Any]) -> None:
    reserved = Boot(*set_up(boot)).allocator.reserved_bytes
    assert abs(reserved - boot["reserved_after_profile_bytes"]) <= 4 * MIB


@pytest.mark.parametrize("boot", EAGER, ids=label)
def test_reserved_at_the_end_of_startup(boot: dict[str, Any]) -> None:
    model, share, config = set_up(boot)
    reserved = _finished(boot, Boot(model, share, config), config.block_size)
    assert abs(reserved - boot["reserved_at_end_bytes"]) <= KNOWN_LOOSE.get(boot["name"], 4) * MIB


@pytest.mark.parametrize("boot", EAGER, ids=label)
def test_used_is_context_non_torch_and_reserved(boot: dict[str, Any]) -> None:
    model, share, config = set_up(boot)
    used = (
        cuda_context_bytes(model, config).value
        + non_torch_bytes(config)
        + _finished(boot, Boot(model, share, config), config.block_size)
    )
    assert abs(used - boot["used_at_end_bytes"]) <= (KNOWN_LOOSE.get(boot["name"], 4) + 4) * MIB


@pytest.mark.parametrize("boot", EAGER, ids=label)
def test_context_and_non_torch_are_constants_of_the_machine(boot: dict[str, Any]) -> None:
    model, _, config = set_up(boot)
    assert cuda_context_bytes(model, config).value == boot["cuda_context_bytes"]
    assert abs(non_torch_bytes(config) - boot["non_torch_bytes"]) <= 4 * MIB
