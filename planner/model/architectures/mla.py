"""Multi-head latent attention, and the decoders around it: DeepSeek V2, V3, V3.2, GLM-5, GLM-4.7-Flash, LongCat.

Source: vLLM 0.26.0 model_executor/models/{deepseek_v2,glm4_moe_lite,minicpm3,longcat_flash}.py,
layers/attention/mla_attention.py.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, Heads, gated_mlp, norm, read_heads, text_dims
from planner.model.architectures.experts import correction_bias, experts, router
from planner.model.architectures.moe import plain_attention
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, IndexerCache, Linear, MLAProjection, Module, Parameter, TokenBuffer
from planner.model.rope import rope_parameters, rotary_cache
from planner.model.spec import TextDims
from planner.values import DType

GATED: dict[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj")}
QKV_A: dict[str, tuple[str, ...]] = {"fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}
INDEXER_BLOCK = 128
"""Elements of an indexer's key that share a float32 scale (deepseek_v2.py:688)."""


class Latent(Struct, frozen=True, kw_only=True):
    """Sizes of one latent attention, whole model. `q_lora_rank` None: the query is projected in one step."""

    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


def read_latent(config: ConfigView) -> Latent:
    return Latent(
        hidden_size=config.size("hidden_size"),
        num_heads=config.size("num_attention_heads"),
        q_lora_rank=config.explicit("q_lora_rank") and config.size("q_lora_rank"),
        kv_lora_rank=config.size("kv_lora_rank"),
        qk_nope_head_dim=config.size("qk_nope_head_dim"),
        qk_rope_head_dim=config.size("qk_rope_head_dim"),
        v_head_dim=config.size("v_head_dim"),
    )


def projections(at: str, layer: int, sizes: Latent, *, fused: bool = True, quantizable: bool = True) -> list[Module]:
    """The replicated latent projections, the sharded ones beside them, and their norms (deepseek_v2.py:952).

    `fused`: query and key-value down-projections are one matrix, where there is a query rank.
    """
    rank, latent = sizes.q_lora_rank, sizes.kv_lora_rank + sizes.qk_rope_head_dim
    query = sizes.num_heads * sizes.qk_head_dim

    def linear(
        name: str, inputs: int, *outputs: int, parallelism: Any = "replicated", shards: tuple[str, ...] = ()
    ) -> Linear:
        return Linear(
            name=f"{at}.{name}",
            placement=layer,
            input_size=inputs,
            output_sizes=outputs,
            parallelism=parallelism,
            shard_names=shards,
            quantizable=quantizable,
            tensor_parallel=parallelism != "replicated",
        )

    parts: list[Module] = []
    if rank is not None and fused:
        parts.append(linear("fused_qkv_a_proj", sizes.hidden_size, rank, latent, shards=QKV_A["fused_qkv_a_proj"]))
    else:
        parts.append(linear("kv_a_proj_with_mqa", sizes.hidden_size, latent))
    if rank is None:
        parts.append(linear("q_proj", sizes.hidden_size, query, parallelism="column"))
    else:
        if not fused:
            parts.append(linear("q_a_proj", sizes.hidden_size, rank))
        parts += [*norm(f"{at}.q_a_layernorm", rank, layer), linear("q_b_proj", rank, query, parallelism="column")]
    parts += norm(f"{at}.kv_a_layernorm", sizes.kv_lora_rank, layer)
    up = sizes.num_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim)
    parts.append(linear("kv_b_proj", sizes.kv_lora_rank, up, parallelism="column"))
    parts.append(linear("o_proj", sizes.num_heads * sizes.v_head_dim, sizes.hidden_size, parallelism="row"))
    return parts


def latent_attention(
    at: str,
    layer: int,
    sizes: Latent,
    rope: dict[str, Any] | None,
    position: int,
    *,
    fused: bool = True,
    quantizable: bool = True,
) -> list[Module]:
    """Projections, rotary table (None: no positions), the latent cache, and the absorbed copies made after load."""
    parts = projections(at, layer, sizes, fused=fused, quantizable=quantizable)
    if rope is not None:
        parts.append(
            rotary_cache(f"{at}.rotary_emb", sizes.qk_rope_head_dim, position, rope, placement=layer, interleaved=True)
        )
    parts.append(
        Attention(
            name=f"{at}.attn",
            placement=layer,
            kind="mla_attention",
            num_heads=sizes.num_heads,
            num_kv_heads=1,
            head_size=sizes.kv_lora_rank + sizes.qk_rope_head_dim,
            has_rope=rope is not None,
        )
    )
    parts.append(
        MLAProjection(
            name=f"{at}.mla_attn.mla_attn",
            placement=layer,
            num_heads=sizes.num_heads,
            kv_lora_rank=sizes.kv_lora_rank,
            qk_nope_head_dim=sizes.qk_nope_head_dim,
            v_head_dim=sizes.v_head_dim,
        )
    )
    return parts


def indexer(
    at: str, layer: int, config: ConfigView, sizes: Latent, rope: dict[str, Any], position: int
) -> list[Module]:
    """The lightning indexer of one layer: replicated projections, a float32 norm, its own rotary table and key cache
    of head_dim bytes with a float32 scale for each 128 (deepseek_v2.py:643)."""
    heads, size = config.size("index_n_heads"), config.size("index_head_dim")
    interleaved = config.flag("indexer_rope_interleave")
    rank = sizes.q_lora_rank or sizes.hidden_size
    return [
        rotary_cache(
            f"{at}.indexer_rope_emb", sizes.qk_rope_head_dim, position, rope, placement=layer, interleaved=interleaved
        ),
        Linear(name=f"{at}.indexer.wq_b", placement=layer, input_size=rank, output_sizes=(size * heads,)),
        Linear(
            name=f"{at}.indexer.wk_weights_proj",
            placement=layer,
            input_size=sizes.hidden_size,
            output_sizes=(size, heads),
            quantizable=False,
        ),
        *norm(f"{at}.indexer.k_norm", size, layer, bias=True, dtype="float32"),
        IndexerCache(name=f"{at}.indexer.k_cache", placement=layer, head_size=size + size // INDEXER_BLOCK * 4),
    ]


def has_indexer(config: ConfigView, layer: int) -> bool:
    """Layers that reuse an earlier layer's choice build no indexer (deepseek_v2.py:1063)."""
    pattern = config.raw("index_topk_pattern")
    if pattern is None:
        offset, frequency = config.count("index_skip_topk_offset", 2), config.size("index_topk_freq", 1)
        return max(layer - offset + 1, 0) % frequency == 0
    return not (layer < len(pattern) and pattern[layer] == "S")


def deepseek(config: ConfigView, prefix: str = "") -> Architecture:
    """DeepseekForCausalLM, DeepseekV2, V3 and V32ForCausalLM, GlmMoeDsaForCausalLM (deepseek_v2.py:1177, 1347).

    Layers for multi-token prediction are not built unless speculative decoding asks for them.
    """
    nope, rotary = config.count("qk_nope_head_dim", 0), config.count("qk_rope_head_dim", 0)
    if config.model_type == "deepseek" or not (nope or rotary):
        heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
        fused: dict[str, tuple[str, ...]] = dict(LLAMA_FUSED)
        return _stack(config, prefix, text_dims(config, heads), plain_attention(config, heads), fused=fused)
    return _latent_stack(config, prefix)


def glm4_moe_lite(config: ConfigView, prefix: str = "") -> Architecture:
    """Glm4MoeLiteForCausalLM: DeepSeek's attention, GLM-4.5's experts and float32 gate (glm4_moe_lite.py:103)."""
    return _latent_stack(config, prefix, gate="float32", always_corrected=True, sequence_parallel=False)


def _latent_stack(
    config: ConfigView,
    prefix: str,
    *,
    gate: DType | None = None,
    always_corrected: bool = False,
    sequence_parallel: bool = True,
) -> Architecture:
    sizes, rope = read_latent(config), _deepseek_rope(config)
    position = config.size("max_position_embeddings", 8192)
    sparse = config.raw("index_topk") is not None

    def attention(at: str, layer: int) -> list[Module]:
        parts = latent_attention(at, layer, sizes, rope, position)
        return (
            parts + indexer(at, layer, config, sizes, rope, position)
            if sparse and has_indexer(config, layer)
            else parts
        )

    fused = GATED | (QKV_A if sizes.q_lora_rank is not None else {})
    result = _stack(
        config,
        prefix,
        latent_dims(config, sizes),
        attention,
        fused=fused,
        gate=gate,
        always_corrected=always_corrected,
        sequence_parallel=sequence_parallel,
        use_mla=True,
    )
    if not sparse:
        return result
    name = f"{prefix}model.topk_indices_buffer"
    buffer = TokenBuffer(name=name, placement="every", columns=config.size("index_topk"), dtype="int32")
    return replace(result, modules=(*result.modules, buffer))


def _stack(
    config: ConfigView,
    prefix: str,
    dims: TextDims,
    attention: Any,
    *,
    fused: dict[str, tuple[str, ...]],
    gate: DType | None = None,
    always_corrected: bool = False,
    sequence_parallel: bool = True,
    use_mla: bool = False,
) -> Architecture:
    count = config.count("n_routed_experts", 0)
    dense, step = config.count("first_k_dense_replace", 0), config.size("moe_layer_freq", 1)
    corrected = always_corrected or config.raw("topk_method") == "noaux_tc"

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not count or layer < dense or layer % step:
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        inner, shared = config.size("moe_intermediate_size"), config.count("n_shared_experts", 0)
        beside = gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []
        return [
            router(f"{at}.gate", layer, hidden, count, dtype=gate),
            *([correction_bias(f"{at}.gate.e_score_correction_bias", layer, count)] if corrected else []),
            *(whole_in_sequence_parallel(beside) if sequence_parallel else beside),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        fused=fused,
        num_experts=count,
        use_mla=use_mla,
    )


def whole_in_sequence_parallel(parts: list[Module]) -> list[Module]:
    """Shared experts of a class that passes them is_sequence_parallel."""
    return [replace(part, whole_in_sequence_parallel=True) if isinstance(part, Linear) else part for part in parts]


def latent_dims(config: ConfigView, sizes: Latent) -> TextDims:
    heads = Heads(
        hidden_size=sizes.hidden_size,
        num_heads=sizes.num_heads,
        num_kv_heads=1,
        head_size=sizes.kv_lora_rank + sizes.qk_rope_head_dim,
    )
    return text_dims(config, heads, config.size("intermediate_size", config.size("ffn_hidden_size", 1)))


def _deepseek_rope(config: ConfigView) -> dict[str, Any]:
    """Any scaling becomes DeepSeek's own yarn (deepseek_v2.py:1037)."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "default":
        return rope
    return rope | {"rope_type": "deepseek_yarn" if config.raw("apply_yarn_scaling", True) else "deepseek_llama_scaling"}


def minicpm3(config: ConfigView, prefix: str = "") -> Architecture:
    """MiniCPM3ForCausalLM: latent projections in front of plain attention over whole keys (minicpm3.py:52).

    The value is as wide as hidden / heads where the config does not say; its cache is padded to the key's width.
    """
    view = ConfigView(
        {"v_head_dim": config.size("hidden_size") // config.size("num_attention_heads"), **config.data}, config.where
    )
    sizes, rope = read_latent(view), rope_parameters(config)
    position = config.size("max_position_embeddings", 8192)
    heads = Heads(
        hidden_size=sizes.hidden_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_heads,
        head_size=sizes.qk_head_dim,
    )
    dims = text_dims(config, heads)

    def attention(at: str, layer: int) -> list[Module]:
        return [
            *projections(at, layer, sizes, fused=False),
            rotary_cache(f"{at}.rotary_emb", sizes.qk_rope_head_dim, position, rope, placement=layer),
            Attention(
                name=f"{at}.attn",
                placement=layer,
                kind="full_attention",
                num_heads=sizes.num_heads,
                num_kv_heads=sizes.num_heads,
                head_size=sizes.qk_head_dim,
            ),
        ]

    return assemble(
        dims,
        prefix=prefix,
        every_stage=True,
        tied=config.flag("tie_word_embeddings", True),
        attention=attention,
        fused=GATED,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
    )


def longcat_flash(config: ConfigView, prefix: str = "") -> Architecture:
    """LongcatFlashForCausalLM: two attentions and two dense MLPs a layer beside the experts, some of which do nothing
    (longcat_flash.py:240, 351)."""
    config.require("disable_quant_module", ([],), [])
    view = ConfigView({"num_hidden_layers": config.raw("num_layers"), **config.data}, config.where, config.model_type)
    sizes, rope = read_latent(view), _deepseek_rope(config)
    inner = config.size("ffn_hidden_size", config.size("intermediate_size", 1))
    dims = replace(latent_dims(view, sizes), intermediate_size=inner)
    count, idle, hidden = config.size("n_routed_experts"), config.count("zero_expert_num", 0), sizes.hidden_size
    gate: DType | None = "float32" if config.raw("router_dtype", "float32") == "float32" else None
    expert = config.size("moe_intermediate_size", config.size("expert_ffn_hidden_size", inner))

    def attention(at: str, layer: int) -> list[Module]:
        return [
            part
            for index in range(2)
            for part in latent_attention(f"{at}.{index}", layer, sizes, rope, dims.max_position_embeddings)
        ]

    def feed_forward(at: str, layer: int) -> list[Module]:
        above = at.rpartition(".")[0]
        parts = [part for index in range(2) for part in gated_mlp(f"{above}.mlps.{index}", layer, hidden, inner)]
        for name in ("input_layernorm", "post_attention_layernorm"):
            parts += [part for index in range(2) for part in norm(f"{above}.{name}.{index}", hidden, layer)]
        return [
            *parts,
            router(f"{at}.router.classifier", layer, hidden, count + idle, bias=config.flag("router_bias"), dtype=gate),
            Parameter(name=f"{at}.router.e_score_correction_bias", placement=layer, shape=(count + idle,), dtype=gate),
            experts(at, layer, count=count, top_k=config.size("moe_topk"), hidden=hidden, inner=expert),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        num_experts=count,
        use_mla=True,
        names=replace(LLAMA_NAMES, norms=()),
        fused=LLAMA_FUSED,
    )
