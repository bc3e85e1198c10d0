"""ModelSpec: what a config says, in vLLM's terms, before hardware and flags."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from planner.model.draft_spec import Draft
from planner.model.engine_facts import EngineFacts
from planner.model.modules import Module, PackedNames
from planner.model.vision_spec import VisionSpec
from planner.values import DType, Value


class ModelFiles(Value):
    """The JSON files of a model folder, as read, and what the headers of its safetensors files say.

    `unquantized_modules` / `quantized_modules`: modules of the checkpoint all of whose tensors are F16, BF16 or F32 /
    that have another tensor (vLLM 0.26.0 layers/quantization/auto_awq.py:393, auto_gptq.py:278); None: not known.
    `checkpoint_bytes`: tensor bytes of the checkpoint. `source` says where the facts come from.
    """

    name: str
    path: str | None = None
    config: dict[str, Any]
    preprocessor: dict[str, Any] = {}
    video_preprocessor: dict[str, Any] = {}
    processor: dict[str, Any] = {}
    generation: dict[str, Any] = {}
    hf_quant: dict[str, Any] = {}
    unquantized_modules: tuple[str, ...] | None = None
    quantized_modules: tuple[str, ...] | None = None
    checkpoint_bytes: int | None = None
    source: str | None = None


class TextDims(Struct, frozen=True, kw_only=True):
    """The language model's sizes, whole model."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    max_position_embeddings: int


class QuantizationSpec(Struct, frozen=True, kw_only=True):
    """The checkpoint's quantization in one shape. `method` is vLLM's resolved name (auto_awq, auto_gptq, fp8,
    compressed-tensors, modelopt, mxfp4, ...); `raw` keeps the dialect for the scheme that reads it."""

    method: str
    raw: dict[str, Any]


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model as vLLM would build it. `modules` is everything that takes memory, unsharded.

    `supports_pp`: the class implements SupportsPP. `is_hybrid`: it mixes attention with recurrent layers.
    `pipeline_refusal`: the sentence with which a class that implements SupportsPP refuses pipeline parallelism all the
    same. `refusal`: that with which this class fails to be built, whatever the flags; `full_graph_refusal`: that
    with which it does where whole batches are captured.
    `supports_encoder_tp_data`: without it vLLM falls back to `--mm-encoder-tp-mode weights` (config/model.py:703).
    `language_class`: the class of the language model that a multimodal class builds; empty where it writes its own.
    `draft`: the head that drafts for it in speculative decoding, its modules among the model's.
    `derived_max_model_len`: what vLLM derives from the config (config/model.py _get_and_verify_max_len).
    """

    name: str
    architecture: str
    model_type: str
    text: TextDims
    checkpoint_dtype: DType | None
    modules: tuple[Module, ...]
    names: PackedNames
    quantization: QuantizationSpec | None
    tie_word_embeddings: bool
    is_moe: bool = False
    is_hybrid: bool = False
    use_mla: bool = False
    supports_pp: bool = True
    pipeline_refusal: str | None = None
    refusal: str | None = None
    full_graph_refusal: str | None = None
    supports_encoder_tp_data: bool = False
    num_experts: int = 0
    sliding_window: int | None = None
    derived_max_model_len: int
    max_model_len_source: str = "max_position_embeddings"
    vision: VisionSpec | None = None
    language_class: str = ""
    facts: EngineFacts = EngineFacts()
    unquantized_modules: tuple[str, ...] | None = None
    quantized_modules: tuple[str, ...] | None = None
    trust_remote_code: bool = False
    checkpoint_bytes: int | None = None
    notes: tuple[str, ...] = ()
    evidence: Literal["exact", "derived", "unverified"] = "unverified"
    draft: Draft | None = None

    @property
    def is_multimodal(self) -> bool:
        return self.vision is not None
