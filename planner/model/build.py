"""ModelFiles -> ModelSpec: pick the architecture, lay out its modules, and read what the engine needs beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.model.config_view import ConfigView
from planner.model.engine_facts import engine_facts
from planner.model.max_len import derive_max_model_len
from planner.model.modules import Attention, Module, QKVLinear
from planner.model.quantization import read_quantization
from planner.model.registry import describe
from planner.model.spec import ModelFiles, ModelSpec
from planner.model.vision_spec import VisionSpec
from planner.values import DTYPE_BYTES, DType

_OWN_PROCESSORS = ("InternVL", "DeepseekOCR", "DeepseekOCR2")
"""Families whose processor vLLM builds from config.json alone."""
_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


def build_model(
    files: ModelFiles, hf_overrides: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> ModelSpec:
    """The model that vLLM would build from these files.

    `hf_overrides` are merged over the config, nested objects key by key, as vLLM's --hf-overrides does.
    Raises: InputError for a config that cannot be one, UnsupportedError for what this planner does not know.
    """
    config = _merged(files.config, hf_overrides or {})
    view = ConfigView(config, files=files)
    name = architecture_of(view)
    text_section = text_section_of(config)
    architecture = describe(name)(view)
    _refuse_empty(architecture.modules)
    length, source = derive_max_model_len(text_section, _text_type(config, text_section))
    return ModelSpec(
        name=files.name,
        architecture=name,
        model_type=view.text("model_type", ""),
        text=architecture.text,
        checkpoint_dtype=_dtype(view, text_section),
        modules=architecture.modules,
        names=architecture.names,
        quantization=read_quantization(config, files.hf_quant),
        tie_word_embeddings=architecture.tie_word_embeddings,
        is_moe=architecture.is_moe,
        is_hybrid=architecture.is_hybrid,
        use_mla=architecture.use_mla,
        supports_pp=architecture.supports_pp,
        pipeline_refusal=architecture.pipeline_refusal,
        refusal=architecture.refusal,
        full_graph_refusal=architecture.full_graph_refusal,
        supports_encoder_tp_data=architecture.supports_encoder_tp_data,
        num_experts=architecture.num_experts,
        sliding_window=architecture.sliding_window,
        derived_max_model_len=length,
        max_model_len_source=source,
        vision=architecture.vision,
        language_class=architecture.language_class,
        trust_remote_code=trust_remote_code,
        notes=(*architecture.notes, *_processor_note(files, architecture.vision)),
        facts=engine_facts(config, text_section, name),
        unquantized_modules=files.unquantized_modules,
        quantized_modules=files.quantized_modules,
        checkpoint_bytes=files.checkpoint_bytes,
    )


def _refuse_empty(modules: Iterable[Module]) -> None:
    """Sizes that are whole numbers each and still leave a head nothing, as more heads than elements do."""
    for module in modules:
        if isinstance(module, (Attention, QKVLinear)) and module.head_size < 1:
            raise InputError(f"config.json: the heads of {module.name} have no elements (hidden_size below the heads)")


def _processor_note(files: ModelFiles, vision: VisionSpec | None) -> tuple[str, ...]:
    """Sizes of media come from the processor's file, which vLLM asks for at startup where the class has one."""
    if vision is None or vision.family in _OWN_PROCESSORS or files.preprocessor or files.processor:
        return ()
    return (
        "no preprocessor_config.json or processor_config.json beside config.json: media are counted by the defaults of "
        "the processor's class, and vLLM does not start without the file unless its media are limited to 0",
    )


def architecture_of(view: ConfigView) -> str:
    """The first of `architectures`. vLLM serves nothing without one."""
    architectures = view.strings("architectures")
    if not architectures:
        raise InputError(f"{view.where}: architectures is missing or empty (No model architectures are specified)")
    return architectures[0]


def text_section_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config: a nested section where there is one, else the whole."""
    for key in _TEXT_SECTIONS:
        section = config.get(key)
        if isinstance(section, Mapping):
            return text_section_of(section)
    return config


def _text_type(config: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    own = section.get("model_type")
    return str(own if own else config.get("model_type", ""))


def _dtype(view: ConfigView, text: Mapping[str, Any]) -> DType | None:
    """torch_dtype or dtype, of the whole config or of the language model's section."""
    for section in (view.data, text):
        for key in ("dtype", "torch_dtype"):
            value = section.get(key)
            if value is None:
                continue
            value = str(value).removeprefix("torch.")
            if value not in DTYPE_BYTES:
                raise UnsupportedError("dtype", f"{view.where}: {key} = {value!r} is not a dtype this planner knows")
            return value  # type: ignore[return-value]
    return None


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in overrides.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return result
