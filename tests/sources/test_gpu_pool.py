"""`--gpus` spellings, their errors, the rule for totals, and this machine's cards through NVML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from planner.errors import InputError, OutsideError, PlannerError, UnsupportedError
from planner.sources.gpu_pool import parse_gpus
from planner.sources.hardware_catalog import load_hardware_catalog, total_memory_from_nvidia_smi
from planner.units import GIB, MIB


@pytest.mark.parametrize(
    ("text", "name", "count", "nodes"),
    [
        ("l20:8", "L20", 8, 1),
        ("L20:8", "L20", 8, 1),
        ("h20:8x2", "H20-96GB", 8, 2),
        ("t4", "T4", 1, 1),
        (" a10:4 ", "A10", 4, 1),
        ("rtx 4090:8", "RTX 4090", 8, 1),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB", 1, 1),
        ("NVIDIA A800 80GB PCIe:2", "A800-PCIE-80GB", 2, 1),
        ("l40s:1024", "L40S", 1024, 1),
    ],
)
def test_spellings(text: str, name: str, count: int, nodes: int) -> None:
    pool = parse_gpus(text)
    assert (pool.gpu.name, pool.count, pool.nodes, pool.world_size) == (name, count, nodes, count * nodes)
    assert pool.spelling == text.strip()


def test_memory_replaces_the_total() -> None:
    gpu = parse_gpus("l20:8@44.5GiB").gpu
    assert gpu.total_memory_bytes == int(44.5 * GIB)
    assert gpu.memory_evidence == "user"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("l200:8", "did you mean l20"),
        ("", "names no GPU"),
        (":8", "names no GPU"),
        ("l20:", "is no count"),
        ("l20:8x", "is no count"),
        ("l20:8:2", "is no count"),
        ("l20:1.5", "is no count"),
        ("l20:0", "from 1 to 1024"),
        ("l20:-1", "from 1 to 1024"),
        ("l20:1000000000", "from 1 to 1024"),
        ("l20:" + "9" * 5000, "from 1 to 1024"),
        ("l20:8x0", "machine count"),
        ("l20:8@", "not a size"),
        ("l20:8@44", "give a unit"),
        ("l20:8@44.5GB/s", "not a size"),
        ("l20:8@9999TiB", "1024 GiB"),
        ("a100:8", "say one of a100-40g, a100-40g-pcie, a100-80g, a100-80g-pcie"),
        ("zzz:1", "unknown GPU 'zzz'"),
    ],
)
def test_errors_are_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_gpus(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_amd_cards_are_listed_but_not_planned() -> None:
    assert load_hardware_catalog().find("mi300x").vendor == "amd"
    with pytest.raises(UnsupportedError, match="AMD"):
        parse_gpus("mi300x:8")


def test_the_rule_takes_more_from_larger_cards() -> None:
    assert total_memory_from_nvidia_smi(15360) == 14848 * MIB
    assert total_memory_from_nvidia_smi(46068) == 45396 * MIB
    assert total_memory_from_nvidia_smi(81920) == 81120 * MIB


def test_a_users_file_adds_and_overrides(user_config: Path, tmp_path: Path) -> None:
    (user_config / "hardware-lab.yaml").write_text(
        "name: Lab\ncompute_capability: [8, 9]\nnvidia_smi_mib: 24564\naliases:\n- lab-card\n", encoding="utf-8"
    )
    extra = tmp_path / "mine.yaml"
    extra.write_text(
        "name: L20\naliases: [l20]\ncompute_capability: [8, 9]\ntotal_memory_bytes: 48318382080\n", encoding="utf-8"
    )
    catalog = load_hardware_catalog([extra])
    lab = catalog.find("LAB-card")
    assert (lab.total_memory_bytes, lab.memory_evidence) == (total_memory_from_nvidia_smi(24564), "derived")
    assert (catalog.find("l20").total_memory_bytes, catalog.find("l20").memory_evidence) == (48318382080, "user")
    assert {"Lab", "T4"} <= {gpu.name for gpu in catalog.all()}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: X\nname: Y\naliases: [x]\n", "line 2: the key 'name' is repeated"),
        ("name: X\naliases: [x]\ncompute_capability: [8, 9]\nspeed: 3\nnvidia_smi_mib: 1024\n", "speed"),
        ("name: X\naliases: [x]\ncompute_capability: [8, 9]\n", "total_memory_bytes"),
        ("name: [X\naliases: [x]\n", "line"),
        ("- a\n- b\n", "expected an entry"),
        ("name: X\naliases: [x]\nnotes: !!python/object/apply:os.system [id]\n", "line 3"),
    ],
)
def test_a_bad_users_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_hardware_catalog([path]).find("x")
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_users_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_hardware_catalog([tmp_path / "none.yaml"])


class NvmlError(Exception):
    """Stands in for pynvml.NVMLError."""


def fake_nvml(cards: list[tuple[str, int, tuple[int, int]]], init: Callable[[], None] = lambda: None) -> ModuleType:
    module = ModuleType("pynvml")
    functions = {
        "NVMLError": NvmlError,
        "nvmlInit": init,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: cards[index],
        "nvmlDeviceGetName": lambda card: card[0],
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=card[1] * MIB),
        "nvmlDeviceGetCudaComputeCapability": lambda card: card[2],
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def test_local_cards_that_the_catalog_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([("NVIDIA H200", 143771, (9, 0))] * 2))
    pool = parse_gpus("local")
    assert (pool.gpu.name, pool.count, pool.gpu.total_memory_bytes) == ("H200-SXM", 2, 150_109_880_320)


def test_local_card_with_other_memory_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([("NVIDIA GeForce RTX 4090", 49140, (8, 9))]))
    assert parse_gpus("local").gpu.total_memory_bytes == total_memory_from_nvidia_smi(49140)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([("NVIDIA Z9", 20000, (12, 0))]))
    gpu = parse_gpus("local").gpu
    assert (gpu.name, gpu.compute_capability, gpu.memory_evidence) == ("NVIDIA Z9", (12, 0), "derived")


def no_driver() -> None:
    raise NvmlError("Driver Not Loaded")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (None, "nvidia-ml-py"),
        (fake_nvml([]), "no GPU"),
        (fake_nvml([], no_driver), "Driver Not Loaded"),
        (fake_nvml([("Tesla T4", 15360, (7, 5)), ("NVIDIA L4", 23034, (8, 9))]), "the cards differ"),
    ],
)
def test_local_without_usable_cards(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, says: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with pytest.raises(OutsideError) as caught:
        parse_gpus("local")
    assert says in str(caught.value)
    assert isinstance(caught.value, PlannerError)
    assert caught.value.exit_code == 4
