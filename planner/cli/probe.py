"""`vplan probe`: this machine's cards, as text, as JSON, and as entries for a hardware catalog."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.output import Output, check_format, write

if TYPE_CHECKING:
    from planner.sources.gpu_survey import GpuSurvey, MachineSurvey

SCHEMA = "vplan.probe/1"


def probe(
    hardware_catalog: Annotated[
        list[str] | None,
        typer.Option("--hardware-catalog", help="More GPUs, a YAML file; repeatable.", show_default=False),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="text, json or yaml (catalog entries).")] = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """The cards of this machine through NVML: usable bytes, other processes, ECC, MIG slices, NVLink and PCIe.

    Exit code 4: no card, driver or package.

    Example: vplan probe --format yaml >> my_gpus.yaml
    """
    from planner.sources.gpu_survey import survey
    from planner.sources.hardware_catalog import load_hardware_catalog

    check_format(format, ("text", "json", "yaml"))
    found = survey(load_hardware_catalog(tuple(hardware_catalog or ())))
    if format == "json":
        document = {"schema": SCHEMA, **found.model_dump(mode="json")}
        write(json.dumps(document, indent=1), output)
    elif format == "yaml":
        write(catalog_entries(found), output)
    else:
        write(probe_text(found), output)


def probe_text(found: MachineSurvey) -> str:
    """A paragraph for each card, then how they connect."""
    lines = [f"driver {found.driver or '?'}, CUDA up to {found.cuda_driver or '?'}"]
    for gpu in found.gpus:
        lines += ["", *_gpu_lines(gpu)]
    if found.links:
        lines += ["", "between cards:"]
    for link in found.links:
        reach = {True: "peer access", False: "no peer access", None: "peer access unknown"}[link.peer_access]
        lines.append(f"  {link.first} - {link.second}: {link.path}, {reach}")
    return "\n".join(lines)


def _gpu_lines(gpu: GpuSurvey) -> list[str]:
    from planner.units import format_gib

    major, minor = gpu.compute_capability
    lines = [
        f"{gpu.index}: {gpu.name}, compute capability {major}.{minor}, {gpu.uuid}",
        f"  usable {gpu.usable_bytes:,} bytes ({format_gib(gpu.usable_bytes)}, {gpu.usable_evidence}); "
        f"nvidia-smi counts {format_gib(gpu.nvml_total_bytes)}, {format_gib(gpu.used_bytes)} in use",
    ]
    if gpu.pcie_gen is not None:
        lines.append(
            f"  PCIe {gpu.pcie_gen}.0 x{gpu.pcie_width}" + (f", {gpu.nvlinks_up} NVLinks up" if gpu.nvlinks_up else "")
        )
    if gpu.ecc_enabled is not None:
        errors = "" if not gpu.ecc_enabled else f", {gpu.ecc_uncorrected} uncorrected errors"
        lines.append(f"  ECC {'on' if gpu.ecc_enabled else 'off'}{errors}")
    if gpu.mig_enabled:
        lines.append("  MIG on: vLLM sees each slice as a card of its own")
        lines += [f"    {one.name}: {format_gib(one.total_bytes)}, {one.uuid}" for one in gpu.mig_slices]
    for process in gpu.processes:
        size = "memory not told" if process.used_bytes is None else format_gib(process.used_bytes)
        lines.append(f"  in use by {process.pid} ({process.name}): {size}")
    return lines


def catalog_entries(found: MachineSurvey) -> str:
    """Each kind of card and of MIG slice once, as a document of hardware_catalog.yaml."""
    entries: dict[str, dict[str, Any]] = {}
    for gpu in found.gpus:
        peers = [link.peer_access for link in found.links if gpu.index in (link.first, link.second)]
        if gpu.mig_enabled:
            for one in gpu.mig_slices:
                entries.setdefault(one.name, _entry(gpu, one.name, one.total_bytes, "one MIG slice", peers))
        else:
            entries.setdefault(gpu.name, _entry(gpu, gpu.name, gpu.usable_bytes, gpu.usable_evidence, peers))
    return "".join(
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in entry.items()) for entry in entries.values()
    )


def _entry(gpu: GpuSurvey, name: str, usable_bytes: int, evidence: str, peers: list[bool | None]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": f"{name} (this machine)",
        "device_name": gpu.name,
        "compute_capability": list(gpu.compute_capability),
        "total_memory_bytes": usable_bytes,
        "memory_evidence": "user",
        "pcie_gen": gpu.pcie_gen,
        "max_power_watts": gpu.max_power_watts,
        "peer_access": False if False in peers else None,
        "sources": [f"NVML of this machine; total memory: {evidence}"],
    }
    return {key: value for key, value in entry.items() if value is not None}
