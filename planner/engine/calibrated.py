"""What this machine's own logs add to the terms that no source gives."""

from __future__ import annotations

from planner.hardware.spec import GpuSpec
from planner.units import format_gib

Shifts = tuple[tuple[str, int], ...]


def resolve_calibration(gpu: GpuSpec, model_name: str, vllm_version: str) -> tuple[Shifts, tuple[str, ...]]:
    """Bytes to add by term, for exactly this card, model and release, and the warning that names them."""
    for entry in gpu.calibrations:
        if (entry.model, entry.vllm_version) == (model_name, vllm_version):
            shifts = tuple(sorted(entry.shifts().items()))
            words = ", ".join(f"{term.removesuffix('_bytes')} +{format_gib(size)}" for term, size in shifts)
            logs = "1 log" if entry.logs == 1 else f"{entry.logs} logs"
            return shifts, (f"calibrated by {logs} of this card, release and model: {words or 'nothing to add'}",)
    return (), ()
