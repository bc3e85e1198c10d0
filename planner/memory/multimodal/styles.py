"""How each class of towers writes its blocks, as far as it decides which tensors live together.

Source: vLLM 0.26.0 model_executor/models/<file>.py; attention backends: platforms/cuda.py:495.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from planner.engine.config import EngineConfig
from planner.memory.multimodal.flash_splits import flash_splits
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.tower import Tower
from planner.model.vision_spec import Encoder
from planner.values import DTYPE_BYTES

TowerStyle = Literal[
    "qwen2", "qwen2_5", "qwen3", "glm4v", "dots", "plain", "rotated", "paddle", "minimax", "moonvit", "pixtral",
    "pixtral_native", "audio"
]  # fmt: skip
_WITHOUT_FLASH = ("pixtral", "pixtral_native", "audio")

_HOPPER_SM_COUNT = 132
_ROTATIONS: dict[TowerStyle, Literal["none", "joined", "wide", "contiguous", "complex"]] = {
    "qwen2": "joined",
    "qwen2_5": "joined",
    "qwen3": "joined",
    "rotated": "joined",
    "pixtral": "joined",
    "minimax": "wide",
    "dots": "wide",
    "paddle": "wide",
    "glm4v": "contiguous",
    "moonvit": "complex",
    "pixtral_native": "complex",
}


def tower_of(
    encoder: Encoder, style: TowerStyle, config: EngineConfig, items: Sequence[MediaItem], tp: int, *, quantized: bool
) -> Tower:
    """The encoder's sizes and habits. FlashAttention from compute capability 8.0 on for 16-bit heads of a multiple of
    8 up to 256; PyTorch's attention for Pixtral, for transformers' audio encoders and where FlashAttention is not."""
    flash = (
        style not in _WITHOUT_FLASH
        and config.compute_capability >= (8, 0)
        and config.dtype != "float32"
        and encoder.head_size % 8 == 0
        and encoder.head_size <= 256
    )
    return Tower(
        hidden=encoder.hidden_size,
        heads=encoder.num_heads,
        head_size=encoder.head_size,
        inner=encoder.intermediate_size,
        layers=encoder.num_layers,
        tp=tp,
        item=DTYPE_BYTES[config.dtype],
        gated=encoder.mlp_shards == 2,
        fused_residual=style in ("qwen2_5", "glm4v"),
        gathers_qkv=style in ("qwen2", "glm4v"),
        rotation=_ROTATIONS.get(style, "none"),
        rotary_size=encoder.head_size // 2,
        flash=flash,
        splits=_splits(config, encoder, items, tp) if flash and config.compute_capability[0] == 9 else 1,
        transposes=style in _WITHOUT_FLASH,
        quantized_inputs=quantized,
        copied_qkv=style == "dots",
        float_tables=style in ("dots", "paddle"),
        keeps_attention=style in ("pixtral", "pixtral_native"),
    )


def _splits(config: EngineConfig, encoder: Encoder, items: Sequence[MediaItem], tp: int) -> int:
    longest = max(-(-item.patches // item.sequences) for item in items)
    sequences = sum(item.sequences for item in items)
    return flash_splits(
        encoder.num_heads // tp, encoder.head_size, longest, sequences, config.sm_count or _HOPPER_SM_COUNT
    )
