"""Multi-token prediction: layers of the target's own config that draft for it.

Each predictor norms the token embeddings and the target's hidden states, projects both together, and runs one decoder
layer of the target's kind. Embedding and output head are the target's: what the predictor builds of them goes once it
is loaded. Source: vLLM 0.26.0 model_executor/models/{deepseek,glm4_moe,qwen3_next,qwen3_5,mimo}_mtp.py,
config/speculative.py:325 hf_config_override, v1/spec_decode/llm_base_proposer.py:1421, 1510.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import norm
from planner.model.build import text_section_of
from planner.model.config_view import ConfigView
from planner.model.draft_spec import Draft
from planner.model.modules import Buffer, Linear, Module, Parameter, TokenBuffer, VocabEmbedding
from planner.model.registry import describe
from planner.model.spec import ModelFiles, ModelSpec

_PART = "speculative_config"
_QUANTIZED = (None, "fp8", "modelopt", "modelopt_fp4", "modelopt_mixed", "compressed-tensors")
"""Checkpoints whose predictors' storage was read: the lists of what they leave whole name the predictors too."""


class _Family(Struct, frozen=True, kw_only=True):
    """Where the predictors of a class lie. `count`: the key that says how many, and how many where it is missing.

    `apart`: they are numbered from zero under a prefix of their own and share one projection (Qwen); else they are the
    layers behind the target's last one, each with its projection. `names`: of the norms of embeddings, states and
    output, and of the projection.
    """

    model_types: tuple[str, ...]
    count: str = "num_nextn_predict_layers"
    missing: int = 0
    apart: bool = False
    prefix: str = "model.layers"
    names: tuple[str, str, str, str] = ("enorm", "hnorm", "shared_head.norm", "eh_proj")


_DEEPSEEK = _Family(model_types=("deepseek_v3", "deepseek_v32", "glm_moe_dsa"))
_QWEN_NAMES = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", "fc")
_QWEN35 = _Family(
    model_types=("qwen3_5", "qwen3_5_moe"), count="mtp_num_hidden_layers", apart=True, prefix="mtp.layers",
    names=_QWEN_NAMES,
)  # fmt: skip
FAMILIES: Mapping[str, _Family] = {
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK,
    "GlmMoeDsaForCausalLM": _DEEPSEEK,
    "Glm4MoeForCausalLM": _Family(model_types=("glm4_moe",)),
    "MiMoForCausalLM": _Family(
        model_types=("mimo",),
        names=("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj"),
    ),
    "Qwen3NextForCausalLM": _Family(
        model_types=("qwen3_next",), missing=1, apart=True, prefix="mtp.layers", names=_QWEN_NAMES
    ),
    "Qwen3_5ForConditionalGeneration": _QWEN35,
    "Qwen3_5MoeForConditionalGeneration": _QWEN35,
}  # fmt: skip
"""By the target's class; a model_type outside the family's is one that vLLM finds no predictors for, or others."""


def with_predictors(target: ModelSpec, files: ModelFiles) -> ModelSpec:
    """The target and the predictors of its config. Raises UnsupportedError for classes that are not laid out here."""
    family = FAMILIES.get(target.architecture)
    if family is None or target.model_type not in family.model_types:
        message = f"drafting by mtp with {target.architecture} ({target.model_type}) is not supported by this planner"
        raise UnsupportedError(_PART, message)
    method = target.quantization.method if target.quantization is not None else None
    if method not in _QUANTIZED:
        raise UnsupportedError(_PART, f"predictors quantized by {method} are not supported by this planner")
    view = ConfigView(text_section_of(files.config), files=files)
    count = 0 if view.stated(family.count) and not view.data[family.count] else view.count(family.count, family.missing)
    if not count:
        raise UnsupportedError(_PART, f"{files.name}: config.json names no {family.count}, so no layers to draft by")
    layers = _layers(target, files, family, count)
    first = [module for module in layers if module.placement == 0]
    modules = [*(replace(module, placement="last") for module in layers), *_beside(target, family, count, method)]
    draft = Draft(
        method="mtp", hidden_size=target.text.hidden_size, intermediate_size=target.text.intermediate_size,
        num_heads=target.text.num_attention_heads, num_kv_heads=target.text.num_kv_heads,
        head_size=target.text.head_size, layers=count, words=target.text.vocab_size, all_words=target.text.vocab_size,
        own_head=False, joined=2, max_model_len=target.derived_max_model_len, whole=_alone(target, first),
        eager=target.model_type == "deepseek_v32",
    )  # fmt: skip
    return replace(
        target,
        modules=(*target.modules, *(replace(module, component="draft_model") for module in modules)),
        draft=draft,
        notes=(*target.notes, "the layers for multi-token prediction borrow the target's embedding and output head"),
    )


def _layers(target: ModelSpec, files: ModelFiles, family: _Family, count: int) -> list[Module]:
    """The decoder layers of the predictors, as the target's class builds layers of these numbers, placed from 0 on."""
    section = text_section_of(files.config)
    before = 0 if family.apart else int(section["num_hidden_layers"])
    changes: dict[str, Any] = {
        "num_hidden_layers": before + count,
        "index_topk_pattern": None,
        "index_topk_freq": 1,
    }
    if family.apart:
        changes["layer_types"] = ["full_attention"] * count
    config = _changed(files.config, section, changes)
    built = describe(target.architecture)(ConfigView(config, files=files))
    found: list[Module] = []
    for module in built.modules:
        if module.component != "language_model" or not isinstance(module.placement, int) or module.placement < before:
            continue
        if isinstance(module, Buffer) and not module.shared_key:
            raise UnsupportedError(_PART, f"a predictor with {module.name} is not supported by this planner")
        name = f"{family.prefix}.{module.name.partition('model.layers.')[2]}"
        found.append(replace(module, name=name, placement=module.placement - before))
    return found


def _changed(config: Mapping[str, Any], section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `changes` in its language model's section."""
    if section is config:
        return {**config, **changes}
    return {
        key: _changed(value, section, changes) if isinstance(value, Mapping) and _holds(value, section) else value
        for key, value in config.items()
    }


def _holds(value: Mapping[str, Any], section: Mapping[str, Any]) -> bool:
    return value is section or any(_holds(item, section) for item in value.values() if isinstance(item, Mapping))


def _beside(target: ModelSpec, family: _Family, count: int, method: str | None) -> list[Module]:
    """Norms and projections. The projection is a plain nn.Linear, Qwen's is column-parallel and may be quantized.

    A predictor's own choice of keys outlives the sharing of the target's: the attention's implementation is no module
    and keeps what it was built with (v1/spec_decode/llm_base_proposer.py:1587, sparse_mla_attention.py:306).
    """
    hidden = target.text.hidden_size
    *norms, projection = family.names
    if family.apart:
        owner = family.prefix.rpartition(".")[0]
        fc = Linear(
            name=f"{owner}.{projection}", input_size=2 * hidden, output_sizes=(hidden,), parallelism="column",
            placement="last", quantizable=method != "modelopt_fp4",
        )  # fmt: skip
        return [fc, *_norms(owner, norms, hidden)]
    start = target.text.num_hidden_layers
    chosen = [module for module in target.modules if isinstance(module, TokenBuffer)]
    found: list[Module] = []
    for index in range(start, start + count):
        at = f"{family.prefix}.{index}"
        found += _norms(at, norms, hidden)
        found += [replace(module, name=f"{at}.topk_indices_buffer", placement="last") for module in chosen]
        found.append(Parameter(name=f"{at}.{projection}.weight", placement="last", shape=(hidden, 2 * hidden)))
    return found


def _norms(at: str, names: Sequence[str], hidden: int) -> list[Module]:
    return [module for name in names for module in norm(f"{at}.{name}", hidden, "last")]


def _alone(target: ModelSpec, layer: Sequence[Module]) -> ModelSpec:
    """A model of one predictor's layer, whose pass is the predictor's once embeddings and states are projected."""
    shared = (module for module in target.modules if isinstance(module, VocabEmbedding | TokenBuffer))
    modules = (*(module for module in shared if module.component == "language_model"), *layer)
    return replace(target, modules=modules, text=replace(target.text, num_hidden_layers=1), vision=None, draft=None)
