"""Configs of served classes that no golden checkpoint has, and the card on which they are resolved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.hardware.spec import GpuSpec
from planner.units import GIB

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "served_configs.json").read_text(encoding="utf-8")
)
H200 = GpuSpec(
    name="h200",
    device_name="NVIDIA H200",
    compute_capability=(9, 0),
    total_memory_bytes=int(139.8 * GIB),
    memory_evidence="user",
)
