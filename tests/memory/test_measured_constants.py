"""The constants against the boots that gave them (measurements/), and all of them written once more.

What a machine gave has no rule to be worked out from: its second writing is tests/golden/passes/measured_constants.txt,
so that no digit changes unseen.
"""

from __future__ import annotations

import csv

import pytest

from planner.memory import measured_constants as measured
from planner.memory.constants import Measured
from planner.units import GIB
from tests.conftest import ROOT
from tests.memory.pass_cases import check_text

CONSTANTS = {name: value for name, value in vars(measured).items() if isinstance(value, Measured)}
Row = dict[str, str]


def boots() -> list[Row]:
    found: list[Row] = []
    for path in sorted((ROOT / "measurements").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found += csv.DictReader(file)
    return found


def contexts(tp: str, pp: str) -> set[int]:
    """Bytes in use before the first buffer."""
    rows = [row for row in boots() if (row["tp"], row["pp"]) == (tp, pp) and row["init_free_bytes"]]
    return {int(row["total_bytes"]) - int(row["init_free_bytes"]) for row in rows}


@pytest.mark.parametrize(
    ("tp", "pp", "known"),
    [
        ("1", "1", [measured.CUDA_CONTEXT]),
        ("2", "1", [measured.CUDA_CONTEXT_TP2_V2, measured.CUDA_CONTEXT_TP2_MOE]),
        ("4", "1", [measured.CUDA_CONTEXT_TP4_V2, measured.CUDA_CONTEXT_TP4_MOE]),
        ("1", "2", [measured.CUDA_CONTEXT_PP2]),
    ],
)
def test_contexts_are_those_of_the_boots(tp: str, pp: str, known: list[Measured]) -> None:
    assert contexts(tp, pp) == {constant.value for constant in known}
    assert all(constant.low == constant.value == constant.high for constant in known)


def test_growth_outside_pytorch_is_that_of_the_boots() -> None:
    """Boots without graphs, whose profile captures none: one GPU, and several. Profiled encoders come below."""
    for several, constant in ((False, measured.NON_TORCH), (True, measured.NON_TORCH_TP2)):
        found = [
            int(row["non_torch_bytes"])
            for row in boots()
            if (int(row["tp"]) * int(row["pp"]) > 1) == several and row["enforce_eager"] == "True" and not encodes(row)
        ]
        assert (min(found), max(found)) == (constant.low, constant.high)
        assert max(set(found), key=found.count) == constant.value


def encodes(row: dict[str, str]) -> bool:
    """V1 runs the encoder of a model with media in its profile run."""
    return row["name"].startswith("M.") and row["runner"] == "v1"


def test_a_profiled_encoder_adds_little_outside_pytorch() -> None:
    """Convolutions' modules, which the engine's residual has room for."""
    more = [int(row["non_torch_bytes"]) - measured.NON_TORCH.high for row in boots() if encodes(row)]
    assert len(more) == 5
    assert 0 < max(more) < measured.ENGINE_RESIDUAL.high // 2


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_lies_in_its_interval_and_says_whence(name: str) -> None:
    constant = CONSTANTS[name]
    assert constant.low <= constant.value <= constant.high < 4 * GIB
    assert constant.count > 0
    assert constant.what
    assert constant.machine
    assert constant.vllm_version


def test_every_constant_as_it_was_measured(request: pytest.FixtureRequest) -> None:
    lines = [
        f"{name}: {constant.value:,} ({constant.low:,} to {constant.high:,}) {constant.unit}, {constant.count} of "
        f"{constant.machine}, vLLM {constant.vllm_version}"
        for name, constant in CONSTANTS.items()
    ]
    check_text("measured constants", lines, request)
