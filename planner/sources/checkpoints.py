"""Which checkpoints of a catalog are the same model stored otherwise, told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

_STORAGE = (
    (re.compile(r"[-_.]fp8(?:[-_.](?:dynamic|static|block|kv))?$"), 8),
    (re.compile(r"[-_.](?:quantized[-_.])?w8a(?:8|16)$"), 8),
    (re.compile(r"[-_.]gptq[-_.]?int8$"), 8),
    (re.compile(r"[-_.](?:quantized[-_.])?w4a16$"), 4),
    (re.compile(r"[-_.](?:awq|gptq)(?:[-_.]?int4)?$"), 4),
    (re.compile(r"[-_.](?:nvfp4|mxfp4|int4)$"), 4),
)
_PUBLISHER = re.compile(r"^(?:meta-)?")


def quantized_checkpoints(model: str, ids: Iterable[str]) -> tuple[str, ...]:
    """The ids that name the same model with fewer bits a weight than `model` has, most bits first."""
    stem, bits = _stored(model)
    found = []
    for other in ids:
        other_stem, other_bits = _stored(other)
        if other_stem == stem and other_bits < bits:
            found.append((-other_bits, other))
    return tuple(name for _, name in sorted(found))


def _stored(model: str) -> tuple[str, int]:
    """A model's name without publisher and storage, and the bits of a weight that the name tells (16: none told)."""
    name = _PUBLISHER.sub("", model.rstrip("/").rpartition("/")[2].lower(), count=1)
    for pattern, bits in _STORAGE:
        match = pattern.search(name)
        if match:
            return name[: match.start()], bits
    return name, 16
