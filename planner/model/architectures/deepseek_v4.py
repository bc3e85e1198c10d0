"""DeepSeek-V4: windowed attention beside a compressed cache, hyper-connections, hashed routing in the first layers.

Source: vLLM 0.26.0 models/deepseek_v4/{attention,compressor}.py, models/deepseek_v4/nvidia/model.py.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import Architecture, Heads, gated_mlp, norm, text_dims
from planner.model.architectures.experts import correction_bias, experts, router
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module, PackedCache, Parameter, TokenBuffer
from planner.model.rope import rope_parameters, rotary_cache

HEAD_UNIT = 64
"""FlashMLA's decode kernel takes 64 or 128 query heads (models/deepseek_v4/nvidia/flashmla.py:59)."""
WINDOW_BLOCK = 64
"""Tokens of a block of the window's cache (v1/attention/backends/mla/sparse_swa.py:77)."""
STATE_BLOCK = {4: 4, 128: 8}
"""Tokens of a block of the compressor's state by compression (models/deepseek_v4/compressor.py:160)."""
INDEXED_RATIO = 4
"""Compression at which a layer has an indexer and its compressor overlaps (attention.py:219, compressor.py:230)."""
SCALE_BLOCK = 128


class Sizes(Struct, frozen=True, kw_only=True):
    """Attention sizes of each layer, whole model."""

    hidden: int
    heads: int
    head_size: int
    rotary: int
    q_rank: int
    o_rank: int
    groups: int
    window: int


def deepseek_v4(config: ConfigView, prefix: str = "") -> Architecture:
    """DeepseekV4ForCausalLM. Layers for multi-token prediction are not built, but the last stage keeps their input."""
    sizes = Sizes(
        hidden=config.size("hidden_size"),
        heads=config.size("num_attention_heads"),
        head_size=config.size("head_dim"),
        rotary=config.size("qk_rope_head_dim"),
        q_rank=config.size("q_lora_rank"),
        o_rank=config.size("o_lora_rank"),
        groups=config.size("o_groups"),
        window=config.size("sliding_window"),
    )
    heads = Heads(hidden_size=sizes.hidden, num_heads=sizes.heads, num_kv_heads=1, head_size=sizes.head_size)
    dims = text_dims(config, heads, config.size("moe_intermediate_size"))
    streams = config.size("hc_mult")
    base = assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, attention="attn", mlp="ffn", norms=("attn_norm", "ffn_norm")),
        tied=False,
        attention=lambda at, layer: [
            *_hyper_layer(at, layer, sizes.hidden, streams),
            *_attention(at, layer, config, sizes),
        ],
        feed_forward=lambda at, layer: _feed_forward(at, layer, config, sizes.hidden),
        fused={},
        num_experts=config.size("n_routed_experts"),
        use_mla=True,
        head_quantizable=False,
        extra=_hyper_head(f"{prefix}model", sizes.hidden, streams),
    )
    buffers = (
        TokenBuffer(name=f"{prefix}model.topk_indices_buffer", columns=config.size("index_topk"), dtype="int32"),
        TokenBuffer(name=f"{prefix}model._mtp_hidden_buffer", placement="last", columns=streams * sizes.hidden),
    )
    return replace(base, modules=(*base.modules, *buffers))


def _hyper_layer(at: str, layer: int, hidden: int, streams: int) -> list[Module]:
    """The float32 hyper-connections of a layer's two parts (model.py:820)."""
    above, mix = at.rpartition(".")[0], (2 + streams) * streams
    shapes = {"fn": (mix, streams * hidden), "base": (mix,), "scale": (3,)}
    return [
        Parameter(name=f"{above}.hc_{part}_{name}", placement=layer, shape=shape, dtype="float32")
        for part in ("attn", "ffn")
        for name, shape in shapes.items()
    ]


def _hyper_head(base: str, hidden: int, streams: int) -> list[Module]:
    """The connections behind the last layer, which each stage builds (model.py:1018)."""
    shapes = {"fn": (streams, streams * hidden), "base": (streams,), "scale": (1,)}
    return [
        Parameter(name=f"{base}.hc_head_{name}", placement="every", shape=shape, dtype="float32")
        for name, shape in shapes.items()
    ]


def _ratio(config: ConfigView, layer: int) -> int:
    ratios = config.sizes("compress_ratios")
    if layer >= len(ratios):
        raise InputError(f"{config.where}: compress_ratios has {len(ratios)} entries, none for layer {layer}")
    ratio = max(1, ratios[layer])
    if ratio > 1 and ratio not in STATE_BLOCK:
        raise InputError(f"{config.where}: compress_ratios may hold 0, 1, 4 and 128, found {ratio}")
    return ratio


def _attention(at: str, layer: int, config: ConfigView, sizes: Sizes) -> list[Module]:
    """Latent projections, sinks padded to the kernel's heads, and the caches (attention.py:138)."""
    ratio, grouped = _ratio(config, layer), sizes.groups * sizes.o_rank
    query = sizes.heads * sizes.head_size

    def linear(name: str, inputs: int, *outputs: int, parallelism: Any = "replicated") -> Linear:
        return Linear(
            name=f"{at}.{name}", placement=layer, input_size=inputs, output_sizes=outputs, parallelism=parallelism
        )

    parts: list[Module] = [
        Parameter(
            name=f"{at}.attn_sink",
            placement=layer,
            shape=(sizes.heads,),
            shard_dim=0,
            dtype="float32",
            padded_to=HEAD_UNIT,
        ),
        linear("fused_wqa_wkv", sizes.hidden, sizes.q_rank, sizes.head_size),
        *norm(f"{at}.q_norm", sizes.q_rank, layer),
        linear("wq_b", sizes.q_rank, query, parallelism="column"),
        *norm(f"{at}.kv_norm", sizes.head_size, layer),
        linear("wo_a", query // sizes.groups, grouped, parallelism="column"),
        linear("wo_b", grouped, sizes.hidden, parallelism="row"),
        _rotary(at, layer, config, sizes, ratio),
        PackedCache(
            name=f"{at}.swa_cache",
            placement=layer,
            role="window",
            head_size=sizes.head_size,
            window=sizes.window,
            block_size=WINDOW_BLOCK,
        ),
    ]
    if ratio == INDEXED_RATIO:
        parts += _indexer(at, layer, config, sizes)
    if ratio > 1:
        parts.append(
            PackedCache(name=at, placement=layer, role="keys", head_size=sizes.head_size, compress_ratio=ratio)
        )
        parts += _compressor(f"{at}.compressor", layer, sizes.hidden, sizes.head_size, ratio)
    return parts


def _indexer(at: str, layer: int, config: ConfigView, sizes: Sizes) -> list[Module]:
    count, size = config.size("index_n_heads"), config.size("index_head_dim")
    return [
        Linear(name=f"{at}.indexer.wq_b", placement=layer, input_size=sizes.q_rank, output_sizes=(size * count,)),
        Linear(
            name=f"{at}.indexer.weights_proj",
            placement=layer,
            input_size=sizes.hidden,
            output_sizes=(count,),
            quantizable=False,
        ),
        PackedCache(
            name=f"{at}.indexer.k_cache",
            placement=layer,
            role="index",
            head_size=size + size // SCALE_BLOCK * 4,
            compress_ratio=INDEXED_RATIO,
        ),
        *_compressor(f"{at}.indexer.compressor", layer, sizes.hidden, size, INDEXED_RATIO),
    ]


def _compressor(at: str, layer: int, hidden: int, size: int, ratio: int) -> list[Module]:
    """Position weights, a fused projection that is never quantized, and a float32 state (compressor.py:189)."""
    factor = 2 if ratio == INDEXED_RATIO else 1
    return [
        Parameter(name=f"{at}.ape", placement=layer, shape=(ratio, factor * size), dtype="float32"),
        Linear(
            name=f"{at}.fused_wkv_wgate",
            placement=layer,
            input_size=hidden,
            output_sizes=(factor * size, factor * size),
            quantizable=False,
        ),
        *norm(f"{at}.norm", size, layer),
        PackedCache(
            name=f"{at}.state_cache",
            placement=layer,
            role="state",
            head_size=2 * factor * size,
            window=factor * ratio,
            block_size=STATE_BLOCK[ratio],
        ),
    ]


def _rotary(at: str, layer: int, config: ConfigView, sizes: Sizes, ratio: int) -> Module:
    """One table for compressed and one for other layers; float32 where the positions are scaled (common/rope.py)."""
    rope = rope_parameters(config)
    scaled = rope["rope_type"] != "default"
    rope |= {
        "rope_theta": config.number("compress_rope_theta") if ratio > 1 else config.number("rope_theta", 10_000.0),
        "rope_dim": sizes.rotary,
    }
    if scaled:
        rope["rope_type"] = "deepseek_yarn"
    position = config.size("max_position_embeddings")
    return rotary_cache(
        f"{at}.rotary_emb",
        sizes.head_size,
        position,
        rope,
        placement=layer,
        interleaved=True,
        dtype="float32" if scaled else None,
    )


def _feed_forward(at: str, layer: int, config: ConfigView, hidden: int) -> list[Module]:
    """Experts in each layer; the first ones are chosen by the token itself (model.py:512)."""
    count, top_k, inner = (
        config.size("n_routed_experts"),
        config.size("num_experts_per_tok"),
        config.size("moe_intermediate_size"),
    )
    parts: list[Module] = [router(f"{at}.gate", layer, hidden, count)]
    if layer < config.count("num_hash_layers"):
        table = (config.size("vocab_size"), top_k)
        parts.append(Parameter(name=f"{at}.gate.tid2eid", placement=layer, shape=table, dtype="int32"))
    elif config.raw("topk_method") == "noaux_tc":
        parts.append(correction_bias(f"{at}.gate.e_score_correction_bias", layer, count))
    shared = config.count("n_shared_experts", 0)
    if shared:
        mlp = gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared)
        block = _block_size(config)
        parts += [replace(part, whole_blocks=block) if isinstance(part, Linear) else part for part in mlp]
    return [*parts, experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner)]


def _block_size(config: ConfigView) -> int:
    """Rows of a quantization block, in which shared experts are divided; 0 without blocks (model.py:99)."""
    block = config.section("quantization_config").sizes("weight_block_size", ())
    return block[0] if block else 0
