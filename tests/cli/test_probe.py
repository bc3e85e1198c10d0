"""`vplan probe` against a stand-in for NVML: one machine with NVLink, one with MIG, and ones with nothing to tell."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from planner.cli.main import main
from planner.sources.gpu_pool import parse_gpus
from planner.sources.hardware_catalog import load_hardware_catalog

MIB = 1 << 20


class NvmlError(Exception):
    """Stands in for pynvml.NVMLError."""


def h200(processes=()):
    card = {"name": b"NVIDIA H200", "mib": 143771, "capability": (9, 0), "uuid": "GPU-1", "path": "SYSTEM"}
    told = {"ecc": (1, 1), "errors": 0, "mig": (0, 0), "processes": list(processes), "links": [1] * 18}
    return {**card, **told, "used": 5 * MIB}


def rtx4090():
    return {"name": "NVIDIA GeForce RTX 4090", "mib": 24564, "capability": (8, 9), "used": 0, "path": "HOSTBRIDGE"}


def fake_nvml(cards, *, peer=True, nvlink=False):
    """A module with the functions that probe calls; a card without a field raises, as NVML does for what it lacks."""
    module = ModuleType("pynvml")
    levels = ("INTERNAL", "SINGLE", "MULTIPLE", "HOSTBRIDGE", "NODE", "SYSTEM")
    for number, level in enumerate(levels):
        setattr(module, f"NVML_TOPOLOGY_{level}", number * 10)

    def field(key, pick=lambda value: value):
        def read(card, *_):
            if key not in card:
                raise NvmlError("Not Supported")
            return pick(card[key])

        return read

    def link(card, index):
        if index >= len(card.get("links", [])):
            raise NvmlError("Invalid Argument")
        return card["links"][index]

    def mig_slice(card, index):
        if index >= len(card["slices"]):
            raise NvmlError("Not Found")
        return card["slices"][index]

    functions = {
        "NVMLError": NvmlError, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1, "NVML_AGGREGATE_ECC": 1,
        "NVML_P2P_STATUS_OK": 0,
        "NVML_P2P_CAPS_INDEX_READ": 0, "NVML_P2P_CAPS_INDEX_NVLINK": 2,
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: cards[index], "nvmlSystemGetDriverVersion": lambda: b"580.159.04",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000, "nvmlDeviceGetName": field("name"),
        "nvmlDeviceGetUUID": field("uuid"),
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=card["mib"] * MIB, used=card["used"]),
        "nvmlDeviceGetCudaComputeCapability": field("capability"), "nvmlDeviceGetEccMode": field("ecc"),
        "nvmlDeviceGetTotalEccErrors": field("errors"), "nvmlDeviceGetMigMode": field("mig"),
        "nvmlDeviceGetMaxMigDeviceCount": lambda card: 7, "nvmlDeviceGetMigDeviceHandleByIndex": mig_slice,
        "nvmlDeviceGetComputeRunningProcesses": field("processes"), "nvmlDeviceGetNvLinkState": link,
        "nvmlDeviceGetP2PStatus": lambda one, two, what: 0 if (nvlink if what == 2 else peer) else 1,
        "nvmlDeviceGetTopologyCommonAncestor": lambda one, two: levels.index(one["path"]) * 10,
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda card: 5, "nvmlDeviceGetMaxPcieLinkWidth": lambda card: 16,
        "nvmlDeviceGetEnforcedPowerLimit": lambda card: 700000,
    }  # fmt: skip
    for name, function in functions.items():
        setattr(module, name, function)
    return module


@pytest.fixture
def probed(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null/none")

    def run(module, *arguments):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        code = main(["probe", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_machine_with_nvlink(probed):
    busy = SimpleNamespace(pid=4_000_000_000, usedGpuMemory=3 << 30)
    hidden = SimpleNamespace(pid=4_000_000_001, usedGpuMemory=None)
    code, out, _ = probed(fake_nvml([h200([busy, hidden]), h200()], nvlink=True), "--format", "json")
    assert code == 0
    answer = json.loads(out)
    assert answer["schema"] == "vplan.probe/1"
    assert (answer["driver"], answer["cuda_driver"]) == ("580.159.04", "13.0")
    gpu = answer["gpus"][0]
    assert (gpu["usable_bytes"], gpu["usable_evidence"]) == (150_109_880_320, "measured")
    assert [process["used_bytes"] for process in gpu["processes"]] == [3 << 30, None]
    assert (gpu["ecc_enabled"], gpu["ecc_uncorrected"], gpu["nvlinks_up"]) == (True, 0, 18)
    assert answer["links"] == [{"first": 0, "second": 1, "path": "NV18", "peer_access": True}]


def test_consumer_cards_without_peer_access(probed):
    code, out, _ = probed(fake_nvml([rtx4090(), rtx4090()], peer=False))
    assert code == 0
    assert "0 - 1: PHB, no peer access" in out
    assert "ECC" not in out


def test_mig_slices_become_entries_that_plans_can_use(probed, tmp_path):
    card = h200() | {
        "mig": (1, 1),
        "slices": [{"name": "NVIDIA H200 MIG 1g.18gb", "uuid": "MIG-1", "mib": 16384, "used": 0}] * 2,
    }
    code, out, _ = probed(fake_nvml([card]), "--format", "yaml")
    assert code == 0
    entry = tmp_path / "mine.yaml"
    entry.write_text(out)
    pool = parse_gpus("NVIDIA H200 MIG 1g.18gb (this machine):2", load_hardware_catalog([entry]))
    assert pool.gpu.total_memory_bytes == 16384 * MIB
    assert pool.gpu.compute_capability == (9, 0)


def test_an_entry_keeps_what_the_plan_needs(probed, tmp_path):
    target = tmp_path / "mine.yaml"
    assert probed(fake_nvml([rtx4090(), rtx4090()], peer=False), "--format", "yaml", "--output", str(target))[0] == 0
    gpu = load_hardware_catalog([target]).find("NVIDIA GeForce RTX 4090 (this machine)")
    assert gpu.peer_access is False
    assert gpu.max_power_watts == 700


def test_text_says_what_holds_a_card(probed):
    used = SimpleNamespace(pid=4_000_000_000, usedGpuMemory=3 << 30)
    _, out, _ = probed(fake_nvml([h200([used])]))
    assert "in use by 4000000000 (?): 3.00 GiB" in out
    assert "usable 150,109,880,320 bytes" in out


@pytest.mark.parametrize(("module", "says"), [(None, "nvidia-ml-py"), (fake_nvml([]), "no GPU")])
def test_no_card_is_one_line_and_code_4(probed, module, says):
    code, out, err = probed(module)
    assert (code, out) == (4, "")
    assert says in err
    assert len(err.splitlines()) == 1
