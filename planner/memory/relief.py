"""Which part of startup's profile run is the highest, and what each flag takes off it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from planner.engine.config import EngineConfig
from planner.memory.activation import activation_stages, peak_activation_bytes
from planner.memory.multimodal.encoder import profiles_encoder
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches
from planner.sharding.rank import RankShare

MODEST_SEQS = 256
MODEST_PIXELS = 1_003_520
"""1280 tokens of 28 x 28 pixels: what Qwen's own examples set."""
_LANGUAGE = ("inputs", "embedding", "compilation", "layer", "final")


@dataclass(frozen=True, slots=True)
class Relief:
    """`flags` and the bytes that they take off the profile run's peak."""

    flags: str
    freed_bytes: int


def part_peaks(model: ModelSpec, share: RankShare, config: EngineConfig) -> dict[str, int]:
    """Highest moment in bytes of the profile run's parts: "vision encoder", "language model", "draft model",
    "sampler".

    A part that does not run has no entry. What an earlier part leaves alive is in the later ones.
    """
    tokens, seqs = _sizes(config)
    found: dict[str, int] = {}
    for stage in activation_stages(model, share, config):
        part = _part(stage.name)
        found[part] = max(found.get(part, 0), int(stage.bytes(tokens, seqs)))
    if not profiles_encoder(model, share, config):
        found.pop("vision encoder", None)
    return found


def reliefs(model: ModelSpec, share: RankShare, config: EngineConfig) -> tuple[Relief, ...]:
    """What fewer sequences, fewer pixels, and both take off the peak; flags that take nothing off it are among them."""
    changes: list[tuple[str, dict[str, object]]] = []
    if config.max_num_seqs > MODEST_SEQS:
        changes.append((f"--max-num-seqs {MODEST_SEQS}", {"max_num_seqs": MODEST_SEQS}))
    if profiles_encoder(model, share, config) and model.vision and isinstance(model.vision.image, DynamicPatches):
        limits = {**json.loads(config.mm_processor_kwargs or "{}"), "max_pixels": MODEST_PIXELS}
        text = json.dumps(limits)
        changes.append((f"--mm-processor-kwargs '{text}'", {"mm_processor_kwargs": text}))
    if len(changes) > 1:
        (first, one), (second, other) = changes
        changes.append((f"{first} {second}", {**one, **other}))
    peak = _peak(model, share, config)
    return tuple(
        Relief(flags, peak - _peak(model, share, config.model_copy(update=update))) for flags, update in changes
    )


def _peak(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    return int(peak_activation_bytes(activation_stages(model, share, config), *_sizes(config)))


def _sizes(config: EngineConfig) -> tuple[int, int]:
    return config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)


def _part(stage: str) -> str:
    if stage.startswith("sampler"):
        return "sampler"
    if stage.startswith("draft"):
        return "draft model"
    return "language model" if stage.startswith(_LANGUAGE) else "vision encoder"
