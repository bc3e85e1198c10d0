"""Which attention backend each layer gets, and the block size that follows. Source: vLLM 0.26.0 platforms/cuda.py."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from planner.engine.backend import AttentionQuery, Backend
from planner.engine.backends import BACKENDS, flash_attn_supported, flash_attn_version
from planner.hardware.spec import GpuSpec
from planner.model.modules import Attention, MLAProjection, Module
from planner.model.spec import ModelSpec
from planner.once import once
from planner.values import DType, reject

_PLAIN_KV = ("auto", "float16", "bfloat16")


class AttentionChoice(Struct, frozen=True):
    """`primary` is the backend of the first attention layer; `kv_cache_dtype` what the backends turn the flag into.

    `uniform_decode_graphs`: every backend captures full graphs of speculative decode steps.
    """

    primary: str
    backends: tuple[str, ...]
    kv_cache_dtype: str
    block_size: int
    uniform_decode_graphs: bool
    warnings: tuple[str, ...] = ()


class AttentionSettings(Struct, frozen=True, kw_only=True):
    """What the flags contribute: the resolved dtype, the cache dtype, the user's block size and parallel sizes."""

    dtype: DType
    kv_cache_dtype: str
    block_size: int | None
    default_block_size: int
    tensor_parallel_size: int
    decode_context_parallel_size: int
    per_head_scales: bool
    skip_layers: tuple[int, ...] = ()


def choose_attention(model: ModelSpec, gpu: GpuSpec, settings: AttentionSettings) -> AttentionChoice:
    """The backends of the model's decoder layers on this card.

    Raises Rejected with vLLM's sentence where no backend takes a layer. Source: vLLM 0.26.0
    model_executor/layers/attention/attention.py:150, mla_attention.py:395, models/deepseek_v4/nvidia/model.py:765.
    """
    if model.facts.compress_ratios and model.use_mla:
        return _compressed_mla(gpu, settings)
    chosen: dict[str, Backend] = {}
    warnings: dict[str, None] = {}
    uniform = True
    kv_cache_dtype = settings.kv_cache_dtype
    for query, diff_kv in _queries(model, gpu, settings):
        backend = _diff_kv_backend(query) if diff_kv else _select(query, _forced(model, query), gpu)
        _refuse_kernel(backend, query, gpu)
        warnings.update(dict.fromkeys(_precluded(backend, query)))
        chosen.setdefault(backend.name, backend)
        uniform = uniform and backend.uniform_decode_graphs(query)
        kv_cache_dtype = _canonical_kv_dtype(backend.name, kv_cache_dtype)
    if not chosen:
        return AttentionChoice("", (), kv_cache_dtype, settings.block_size or settings.default_block_size, True)
    primary = next(iter(chosen.values()))
    preferred = primary.preferred_block_size(settings.default_block_size)
    if model.facts.index_topk is not None and model.use_mla:
        preferred = max(preferred, 64)
    block_size = preferred if settings.block_size is None else settings.block_size
    return AttentionChoice(primary.name, tuple(chosen), kv_cache_dtype, block_size, uniform, tuple(warnings))


def _queries(model: ModelSpec, gpu: GpuSpec, settings: AttentionSettings) -> Iterable[tuple[AttentionQuery, bool]]:
    """Each distinct kind of layer once, in the order of the layers, and whether its value heads differ in size."""
    projection = _projection(model.modules)
    forced_version = _forced_flash_attn_version(model, gpu)
    seen: set[tuple[AttentionQuery, bool]] = set()
    for layer in _decoder_layers(model.modules) if settings.skip_layers else _kinds(model.modules):
        is_mla = layer.kind == "mla_attention"
        skipped = layer.placement in settings.skip_layers
        query = AttentionQuery(
            head_size=layer.head_size,
            dtype=settings.dtype,
            kv_cache_dtype="auto" if skipped else settings.kv_cache_dtype,
            block_size=settings.block_size,
            use_mla=is_mla,
            has_sink=layer.has_sinks,
            use_sparse=is_mla and model.facts.index_topk is not None,
            use_mm_prefix=model.facts.prefix_lm and not is_mla,
            use_per_head_quant_scales=settings.per_head_scales and not is_mla,
            attn_type="encoder_decoder" if layer.kind == "cross_attention" else "decoder",
            has_sliding_window=layer.kind == "sliding_window",
            capability=gpu.compute_capability,
            num_heads=max(1, layer.num_heads // settings.tensor_parallel_size),
            num_kv_heads=1 if is_mla else max(1, layer.num_kv_heads // settings.tensor_parallel_size),
            decode_context_parallel_size=settings.decode_context_parallel_size,
            flash_attn_version=forced_version,
            qk_nope_head_dim=projection.qk_nope_head_dim if projection else 1,
            index_topk=model.facts.index_topk,
        )
        found = (query, layer.head_size_v not in (None, layer.head_size) and not is_mla)
        if found not in seen:
            seen.add(found)
            yield found


@once
def _projection(modules: tuple[Module, ...]) -> MLAProjection | None:
    return next((module for module in modules if isinstance(module, MLAProjection)), None)


@once
def _decoder_layers(modules: tuple[Module, ...]) -> tuple[Attention, ...]:
    return tuple(
        module
        for module in modules
        if isinstance(module, Attention) and module.component == "language_model" and module.kind != "encoder_only"
    )


@once
def _kinds(modules: tuple[Module, ...]) -> tuple[Attention, ...]:
    """The first decoder layer of each kind that backends tell apart."""
    found: dict[tuple[object, ...], Attention] = {}
    for layer in _decoder_layers(modules):
        sizes = (layer.head_size, layer.head_size_v, layer.num_heads, layer.num_kv_heads)
        found.setdefault((layer.kind, layer.has_sinks, *sizes), layer)
    return tuple(found.values())


def _forced_flash_attn_version(model: ModelSpec, gpu: GpuSpec) -> int | None:
    """Gemma 4 with two head sizes runs FlashAttention 4 throughout where the card has it."""
    sizes = _uneven_heads(model)
    return 4 if sizes and max(sizes) <= 512 and flash_attn_supported(4, gpu.compute_capability) else None


def _forced(model: ModelSpec, query: AttentionQuery) -> str | None:
    """Gemma 4 with two head sizes runs Triton throughout where the card has no FlashAttention 4.

    Source: vLLM 0.26.0 model_executor/models/config.py Gemma4Config.
    """
    return "TRITON_ATTN" if _uneven_heads(model) and query.flash_attn_version is None else None


def _uneven_heads(model: ModelSpec) -> set[int]:
    if not model.architecture.startswith("Gemma4"):
        return set()
    layers = (module for module in model.modules if isinstance(module, Attention))
    sizes = {layer.head_size for layer in layers if layer.component == "language_model"}
    return sizes if len(sizes) > 1 else set()


def _diff_kv_backend(query: AttentionQuery) -> Backend:
    """Key and value heads of different sizes. Source: vLLM 0.26.0 model_executor/models/mimo_v2.py:302."""
    usable = flash_attn_version(query, query.head_size) in (3, 4)
    return BACKENDS["FLASH_ATTN_DIFFKV" if usable else "TRITON_ATTN_DIFFKV"]


def _select(query: AttentionQuery, forced: str | None, gpu: GpuSpec) -> Backend:
    if forced is not None:
        refusals = BACKENDS[forced].refusals(query)
        if refusals:
            raise reject(
                "attention_backend",
                f"Selected backend AttentionBackendEnum.{forced} is not valid for this configuration. "
                f"Reason: {refusals}",
            )
        return BACKENDS[forced]
    reasons: dict[str, list[str]] = {}
    for name in _priorities(query):
        refusals = BACKENDS[name].refusals(query)
        if not refusals:
            return BACKENDS[name]
        reasons[name] = refusals
    listed = ", ".join(f"{name}: [{', '.join(refusals)}]" for name, refusals in reasons.items())
    raise reject(
        "attention_backend",
        f"No valid attention backend found for cuda with {_shown(query)}. Reasons: {{{listed}}}.",
        fix=_fixes(query, gpu),
    )


def _precluded(backend: Backend, query: AttentionQuery) -> tuple[str, ...]:
    """vLLM's warning where only the user's block size kept a better backend out."""
    order = _priorities(query)
    if query.block_size is None or backend.name not in order:
        return ()
    better = order[: order.index(backend.name)]
    names = ", ".join(name for name in better if BACKENDS[name].refusals(query) == ["block_size not supported"])
    if not names:
        return ()
    return (
        f"--block-size {query.block_size} precluded higher-priority backend(s) {names}. Using {backend.name} instead, "
        "which may result in reduced performance. Consider removing --block-size to auto-select the optimal block "
        "size.",
    )


def _priorities(query: AttentionQuery) -> tuple[str, ...]:
    """Source: vLLM 0.26.0 platforms/cuda.py:83 _get_backend_priorities."""
    major = query.capability[0]
    if not query.use_mla:
        first = ("FLASHINFER", "FLASH_ATTN") if major == 10 else ("FLASH_ATTN", "FLASHINFER")
        return (*first, "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT")
    if major == 12:
        return ("TRITON_MLA", "FLASHINFER_MLA_SPARSE_SM120")
    if major == 10:
        prefer_flashinfer = query.kv_cache_dtype not in _PLAIN_KV or query.num_heads <= 16
        sparse = ("FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE")
        dense = ("FLASHINFER_MLA", "TOKENSPEED_MLA", "CUTLASS_MLA", "FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA")
        return (*dense, *(sparse if prefer_flashinfer else reversed(sparse)))
    return ("FLASH_ATTN_MLA", "FLASHMLA", "FLASHINFER_MLA", "TRITON_MLA", "FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE")


def _shown(query: AttentionQuery) -> str:
    """vLLM's AttentionSelectorConfig as it prints itself (v1/attention/selector.py:42)."""
    return (
        f"AttentionSelectorConfig(head_size={query.head_size}, dtype=torch.{query.dtype}, "
        f"kv_cache_dtype={query.kv_cache_dtype}, block_size={query.block_size}, use_mla={query.use_mla}, "
        f"has_sink={query.has_sink}, use_sparse={query.use_sparse}, use_mm_prefix={query.use_mm_prefix}, "
        f"use_per_head_quant_scales={query.use_per_head_quant_scales}, "
        f"attn_type=AttentionType.{query.attn_type.upper()}, has_sliding_window={query.has_sliding_window}, "
        "use_non_causal=False, use_batch_invariant=False, use_kv_connector=False, use_pcp=False)"
    )


def _fixes(query: AttentionQuery, gpu: GpuSpec) -> tuple[str, ...]:
    """Single flag changes that some backend on this card would take."""
    changes: tuple[tuple[str, AttentionQuery], ...] = (
        ("--kv-cache-dtype auto", replace(query, kv_cache_dtype="auto")),
        ("--kv-cache-dtype fp8", replace(query, kv_cache_dtype="fp8")),
        ("leave out --block-size", replace(query, block_size=None)),
        ("--dtype bfloat16", replace(query, dtype="bfloat16")),
    )
    if gpu.compute_capability < (8, 0):
        changes = changes[:3]
    return tuple(
        text
        for text, changed in changes
        if changed != query and any(not BACKENDS[name].refusals(changed) for name in _priorities(changed))
    )


def _refuse_kernel(backend: Backend, query: AttentionQuery, gpu: GpuSpec) -> None:
    """What a backend refuses only when its layer is built.

    Source: vLLM 0.26.0 v1/attention/backends/triton_attn.py:522, mla/triton_mla.py:184.
    """
    if backend.name not in ("TRITON_ATTN", "TRITON_ATTN_DIFFKV", "TRITON_MLA"):
        return
    mla = backend.name == "TRITON_MLA"
    version = "{}.{}".format(*query.capability)
    if query.kv_cache_dtype.startswith("fp8") and query.capability < (8, 9):
        suggested = "float16" if query.capability < (8, 0) else "bfloat16"
        raise reject(
            "kv_cache_dtype",
            f"FP8 KV cache is not supported by the Triton {'MLA' if mla else 'attention'} backend on "
            f"{gpu.device_name} (compute capability {version}); native FP8 (fp8e4nv) requires SM89+. "
            f"Re-run with --kv-cache-dtype {suggested}.",
            fix=(f"--kv-cache-dtype {suggested}",),
        )
    if query.kv_cache_dtype == "bfloat16" and query.capability < (8, 0):
        where = "by the Triton MLA backend on" if mla else "on"
        raise reject(
            "kv_cache_dtype",
            f"bfloat16 KV cache is not supported {where} {gpu.device_name} (compute capability {version}); bfloat16 "
            "requires SM80+. Re-run with --kv-cache-dtype float16.",
            fix=("--kv-cache-dtype float16",),
        )


def _canonical_kv_dtype(backend: str, kv_cache_dtype: str) -> str:
    """Sparse MLA backends store DeepSeek's packed fp8 whatever fp8 the user named (mla_attention.py:330)."""
    if backend == "FLASHMLA_SPARSE" and kv_cache_dtype not in _PLAIN_KV:
        return "fp8_ds_mla"
    if backend == "FLASHINFER_MLA_SPARSE_SM120" and kv_cache_dtype in ("auto", "fp8", "fp8_e4m3"):
        return "fp8_ds_mla"
    return kv_cache_dtype


def _compressed_mla(gpu: GpuSpec, settings: AttentionSettings) -> AttentionChoice:
    """DeepSeek-V4: its own backends, blocks of 256 tokens and an fp8 cache only."""
    if not settings.kv_cache_dtype.startswith("fp8"):
        raise reject(
            "kv_cache_dtype",
            f"DeepseekV4 fp8_ds_mla layout only supports fp8 kv-cache, got {settings.kv_cache_dtype}",
            fix=("--kv-cache-dtype fp8",),
        )
    name = "FLASHINFER_MLA_SPARSE_DSV4" if gpu.compute_capability[0] == 12 else "FLASHMLA_SPARSE_DSV4"
    block_size = 256 if settings.block_size is None else settings.block_size
    return AttentionChoice(name, (name,), "fp8_ds_mla", block_size, True)
