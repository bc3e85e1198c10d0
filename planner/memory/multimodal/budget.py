"""How many items the encoder may take in one step, as vLLM's scheduler and profile run count them."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.errors import InputError
from planner.memory.multimodal.item import LargestItem
from planner.memory.multimodal.media import item_limit, largest_items
from planner.model.spec import ModelSpec
from planner.values import DTYPE_BYTES


class EncoderBudget(Struct, frozen=True):
    """`tokens`: embeddings that the encoder may make in one step, and that its cache may hold. `largest`: each
    modality's largest item. `items`: how many of them one profiled batch has, by modality."""

    tokens: int
    largest: tuple[LargestItem, ...]
    items: tuple[tuple[str, int], ...]

    @property
    def profiled(self) -> LargestItem | None:
        """The item of which the profile run takes as many as fit: the one with most tokens, by name among equals."""
        return max(self.largest, key=lambda item: (item.max_tokens, item.modality), default=None)

    @property
    def profiled_batch(self) -> tuple[LargestItem, int] | None:
        largest = self.profiled
        return None if largest is None else (largest, dict(self.items)[largest.modality])


def encoder_budget(model: ModelSpec, config: EngineConfig) -> EncoderBudget:
    """Budget of a deployment; empty for text models and where every limit is 0.

    Compute budget and cache size are both max_num_batched_tokens, or the largest item where that is larger.
    Source: vLLM 0.26.0 v1/core/encoder_cache_manager.py:269 compute_mm_encoder_budget, multimodal/encoder_budget.py:49
    MultiModalBudget, config/scheduler.py:248; the same in 0.33.0.
    """
    if model.vision is None:
        return EncoderBudget(tokens=0, largest=(), items=())
    largest = largest_items(model.vision, config)
    if not largest:
        return EncoderBudget(tokens=0, largest=(), items=())
    if any(item.max_tokens < 1 for item in largest):
        raise InputError("config.json: the vision section gives an image or video no tokens at all")
    tokens = max(config.max_num_batched_tokens, *(item.max_tokens for item in largest))
    items = []
    for item in largest:
        limit = item_limit(model.vision, config, item.modality)
        in_prompt = max(1, min(limit, config.max_model_len // item.max_tokens))
        requests = config.max_num_seqs
        if not config.enable_chunked_prefill:
            requests = min(requests, config.max_num_batched_tokens // item.max_tokens)
        items.append((item.modality, max(1, min(tokens // item.max_tokens, requests * in_prompt))))
    return EncoderBudget(tokens=tokens, largest=largest, items=tuple(items))


def embedding_bytes(model: ModelSpec, config: EngineConfig) -> int:
    """One embedding, deepstack levels included."""
    vision = model.vision
    if vision is None:
        return 0
    encoder = vision.encoder or vision.audio_encoder
    return 0 if encoder is None else encoder.output_size * DTYPE_BYTES[config.dtype]
