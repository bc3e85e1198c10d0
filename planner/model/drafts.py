"""Draft models of speculative decoding that read the target's hidden states: EAGLE and EAGLE-3 heads of Llama's kind.

A head has decoder layers of its own behind a projection of the target's states, and borrows the target's embedding;
EAGLE borrows its output head too. Source: vLLM 0.26.0 model_executor/models/llama_eagle.py, llama_eagle3.py,
v1/worker/gpu/spec_decode/eagle/utils.py:39 load_eagle_model, transformers_utils/configs/eagle.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from planner.errors import InputError, UnsupportedError
from planner.model.architectures.blocks import Heads, gated_mlp, norm, read_heads, self_attention
from planner.model.architectures.llama import llama_biases
from planner.model.build import architecture_of, build_model
from planner.model.config_view import ConfigView
from planner.model.draft_spec import Draft
from planner.model.modules import Attention, Buffer, Linear, LMHead, Module, Parameter, QKVLinear, VocabEmbedding
from planner.model.rope import rope_parameters
from planner.model.spec import ModelFiles, ModelSpec
from planner.values import reject

PREFIX = "draft."
_MODEL_PREFIX = "draft_model."
_EAGLE = ("LlamaForCausalLM", "EagleLlamaForCausalLM")
_EAGLE3 = (
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "LlamaForCausalLM",
    "Eagle3MiniMaxM2ForCausalLM",
    "Eagle3Qwen2_5vlForCausalLM",
    "Eagle3Qwen3vlForCausalLM",
)
_UNKNOWN_KEYS = (
    "quantization_config",
    "speculators_config",
    "speculators_model_type",
    "eagle_config",
    "norm_before_fc",
    "fc_norm",
)


def with_draft(target: ModelSpec, files: ModelFiles, method: str) -> ModelSpec:
    """The target and what drafts for it. Raises UnsupportedError for a draft that is not laid out here."""
    return with_model(target, files) if method == "draft_model" else with_head(target, files, method)


def with_model(target: ModelSpec, files: ModelFiles) -> ModelSpec:
    """The target and a smaller dense model that drafts for it, with an embedding and a head of its own.

    Source: vLLM 0.26.0 v1/spec_decode/draft_model.py, config/speculative.py verify_equal_vocab_size_if_draft_model.
    """
    own = build_model(files)
    part = "speculative_config"
    words, drafted = target.text.vocab_size, own.text.vocab_size
    if words != drafted:
        raise reject(
            "flag",
            "Target and draft model should have the same vocabulary size. "
            f"Target model vocab_size={words}. Draft model vocab_size={drafted}. Using models with different "
            "tokenizers can cause out-of-bounds errors during speculative decoding.",
        )
    if own.quantization is not None or own.is_moe or own.is_hybrid or own.use_mla or own.is_multimodal:
        raise UnsupportedError(part, f"drafting by a model like {files.name} is not supported by this planner")
    draft = Draft(
        method="draft_model", hidden_size=own.text.hidden_size, intermediate_size=own.text.intermediate_size,
        num_heads=own.text.num_attention_heads, num_kv_heads=own.text.num_kv_heads, head_size=own.text.head_size,
        layers=own.text.num_hidden_layers, words=words, all_words=words, own_head=True, joined=0,
        max_model_len=own.derived_max_model_len, whole=own,
    )  # fmt: skip
    modules = (_owned(_prefixed(module)) for module in own.modules)
    return replace(target, modules=(*target.modules, *modules), draft=draft)


def _prefixed(module: Module) -> Module:
    """The module under the draft model's prefix, on the last stage."""
    tied = {"tied_to": f"{_MODEL_PREFIX}{module.tied_to}"} if isinstance(module, LMHead) and module.tied_to else {}
    return replace(module, name=f"{_MODEL_PREFIX}{module.name}", placement="last", **tied)


def with_head(target: ModelSpec, files: ModelFiles, method: str) -> ModelSpec:
    """The target and an EAGLE head that drafts for it."""
    view = ConfigView(files.config, files=files)
    name = architecture_of(view)
    if name not in (_EAGLE3 if method == "eagle3" else _EAGLE):
        raise UnsupportedError(
            "speculative_config", f"drafting by {method} with {name} is not supported by this planner"
        )
    for key in _UNKNOWN_KEYS:
        if view.data.get(key):
            raise UnsupportedError("speculative_config", f"a draft model with {key} is not supported by this planner")
    if set(view.data.get("layer_types") or ()) - {"full_attention"}:
        raise UnsupportedError("speculative_config", "a draft model with windows is not supported by this planner")
    view.require("hidden_act", ("silu",), "silu")
    heads = read_heads(view)
    draft = _draft(view, target, heads, method)
    modules = _eagle3(view, draft, target) if method == "eagle3" else _eagle(view, draft, target)
    return replace(
        target,
        modules=(*target.modules, *(_owned(module) for module in modules)),
        draft=draft,
        notes=(*target.notes, *_notes(draft)),
    )


def _draft(view: ConfigView, target: ModelSpec, heads: Heads, method: str) -> Draft:
    vocab = view.size("vocab_size")
    words = view.optional_size("draft_vocab_size") or vocab
    read = view.optional_size("target_hidden_size") or heads.hidden_size
    if read != target.text.hidden_size or (method == "eagle" and heads.hidden_size != target.text.hidden_size):
        raise InputError(
            f"the draft model reads hidden states of {read} elements; {target.name} has {target.text.hidden_size}"
        )
    layers = _target_layers(view, target) if method == "eagle3" else ()
    joined = view.optional_size("num_aux_hidden_states") or 3
    if method == "eagle3" and len(set(layers)) != joined:
        raise UnsupportedError(
            "speculative_config",
            f"hidden states before layers {', '.join(map(str, layers))} do not fill the {joined} inputs of the draft",
        )
    return Draft(
        method=method,
        hidden_size=heads.hidden_size,
        intermediate_size=view.size("intermediate_size"),
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_size=heads.head_size,
        layers=view.layers(),
        words=words if method == "eagle3" else vocab,
        all_words=vocab,
        own_head=method == "eagle3" and words != target.text.vocab_size,
        joined=joined if method == "eagle3" else 2,
        target_layers=tuple(sorted(layers)),
        max_model_len=view.size("max_position_embeddings", 2048),
    )


def _target_layers(view: ConfigView, target: ModelSpec) -> tuple[int, ...]:
    """Source: vLLM 0.26.0 v1/worker/gpu/spec_decode/eagle/eagle3_utils.py:37, models/interfaces.py:1428."""
    stated = view.data.get("eagle_aux_hidden_state_layer_ids")
    if stated:
        return tuple(int(layer) for layer in stated)
    count = target.text.num_hidden_layers
    return (2, count // 2, count - 3)


def _eagle(view: ConfigView, draft: Draft, target: ModelSpec) -> list[Module]:
    modules: list[Module] = []
    for index in range(draft.layers):
        layer = _layer(view, draft, target.text.num_hidden_layers + index, draft.hidden_size)
        skipped = f"layers.{target.text.num_hidden_layers}.input_layernorm" if index == 0 else None
        modules += [module for module in layer if skipped is None or skipped not in module.name]
    return [*modules, _projection(2 * draft.hidden_size, draft.hidden_size)]


def _eagle3(view: ConfigView, draft: Draft, target: ModelSpec) -> list[Module]:
    hidden, modules = draft.hidden_size, []
    for index in range(draft.layers):
        number = target.text.num_hidden_layers + index
        modules += _layer(view, draft, number, 2 * hidden if index == 0 else hidden)
        modules += norm(f"{PREFIX}model.layers.{number}.hidden_norm", hidden, "last")
    joined = draft.joined * (view.optional_size("target_hidden_size") or hidden)
    modules += [_projection(joined, hidden), *norm(f"{PREFIX}model.norm", hidden, "last")]
    if draft.own_head:
        modules.append(
            LMHead(name=f"{PREFIX}lm_head", placement="last", num_embeddings=draft.words, hidden_size=hidden)
        )
    modules.append(
        Parameter(name=f"{PREFIX}draft_id_to_target_id", placement="last", shape=(draft.words,), dtype="int64")
    )
    return modules


def _layer(view: ConfigView, draft: Draft, number: int, inputs: int) -> list[Module]:
    """A decoder layer of Llama's, whose fused attention reads `inputs` elements."""
    at = f"{PREFIX}model.layers.{number}"
    qkv_bias, out_bias = llama_biases(view)
    attention = self_attention(
        f"{at}.self_attn", "last", read_heads(view), qkv_bias=qkv_bias, out_bias=out_bias,
        rope=rope_parameters(view), max_position=draft.max_model_len,
    )  # fmt: skip
    return [
        *(replace(module, hidden_size=inputs) if isinstance(module, QKVLinear) else module for module in attention),
        *gated_mlp(f"{at}.mlp", "last", draft.hidden_size, draft.intermediate_size, bias=view.flag("mlp_bias")),
        *norm(f"{at}.input_layernorm", draft.hidden_size, "last"),
        *norm(f"{at}.post_attention_layernorm", draft.hidden_size, "last"),
    ]


def _projection(inputs: int, hidden: int) -> Linear:
    return Linear(name=f"{PREFIX}model.fc", placement="last", input_size=inputs, output_sizes=(hidden,))


def _owned(module: Module) -> Module:
    """The module as part of the draft, without the target's quantization."""
    changes: dict[str, Any] = {"component": "draft_model"}
    if isinstance(module, Linear | QKVLinear | LMHead | Attention | VocabEmbedding):
        changes["quantizable"] = False
    if isinstance(module, Buffer) and not module.shared_key:
        raise UnsupportedError("speculative_config", f"a draft model with {module.name} is not supported")
    return replace(module, **changes)


def _notes(draft: Draft) -> tuple[str, ...]:
    head = "has an output head of its own" if draft.own_head else "borrows the target's output head"
    return (f"the draft is planned as borrowing the target's embedding; it {head}",)


def drafting_method(config: Mapping[str, Any], files: ModelFiles | None) -> str:
    """The method that vLLM ends with for a --speculative-config. Source: vLLM 0.26.0 config/speculative.py:872."""
    name, method = str(config.get("model") or ""), config.get("method")
    if method is None:
        method = "ngram" if name in ("ngram", "[ngram]") else "draft_model"
    if not isinstance(method, str):
        raise InputError("--speculative-config: method must be a string")
    if method.endswith("_mtp"):
        return "mtp"
    if method != "draft_model" or files is None:
        return method
    lowered = name.lower()
    for mark, meant in _MARKS:
        if mark in lowered:
            return meant
    kind = str(files.config.get("model_type", ""))
    if kind in ("medusa", "mlp_speculator"):
        return kind
    return "mtp" if kind.endswith("_mtp") else method


_MARKS: Sequence[tuple[str, str]] = (
    ("eagle-", "eagle"),
    ("eagle3", "eagle3"),
    ("dflash", "dflash"),
    ("dspark", "dspark"),
)

TAKES_EAGLE3 = frozenset(
    {
        "ApertusForCausalLM", "GptOssForCausalLM", "HunYuanMoEV1ForCausalLM", "MiniMaxM2ForCausalLM",
        "Qwen3MoeForCausalLM", "ArceeForCausalLM", "CwmForCausalLM", "Ernie4_5ForCausalLM", "GlmForCausalLM",
        "HunYuanDenseV1ForCausalLM", "IQuestCoderForCausalLM", "InternLM3ForCausalLM", "LLaMAForCausalLM",
        "LlamaForCausalLM", "MiMoForCausalLM", "MiniCPMForCausalLM", "Ministral3ForCausalLM", "MistralForCausalLM",
        "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "TeleChat2ForCausalLM", "TeleChat3ForCausalLM",
    }
)  # fmt: skip
"""Classes that keep hidden states for EAGLE-3 (vLLM 0.26.0 SupportsEagle3)."""
