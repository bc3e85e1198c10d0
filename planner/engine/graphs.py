"""CUDA graphs: the mode and the batch sizes that are captured. Source: vLLM 0.26.0 config/vllm.py:1739."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.speculative import Speculation
from planner.model.spec import ModelSpec
from planner.releases.release import Release
from planner.values import reject

_ARCHITECTURE_CAPS = {"GptOssForCausalLM": 1024}
_FULL_BY_DEFAULT = ("LongcatFlashNgramForCausalLM",)


class GraphPlan(Struct, frozen=True, kw_only=True):
    """`mode` as vLLM names it; NONE has no sizes."""

    mode: str
    capture_sizes: tuple[int, ...]


def runs_eager(args: EngineArgs, model: ModelSpec) -> bool:
    """--enforce-eager, or an 8-bit bitsandbytes checkpoint (config/model.py _verify_bnb_config)."""
    raw = model.quantization.raw if model.quantization else {}
    return args.enforce_eager or (raw.get("quant_method") == "bitsandbytes" and bool(raw.get("load_in_8bit")))


def resolve_graphs(
    args: EngineArgs, model: ModelSpec, release: Release, speculation: Speculation, *,
    max_num_seqs: int, max_num_batched_tokens: int, capability: tuple[int, int], uniform_decode: bool, is_v2: bool,
) -> GraphPlan:  # fmt: skip
    """The plan at the default optimization level. `uniform_decode`: the attention backends capture speculative decode
    steps whole. Source also: vLLM 0.26.0 config/compilation.py:1353 resolve_cudagraph_mode_and_sizes."""
    mode = _mode(args, model, release, speculation, uniform_decode)
    if mode == "NONE":
        return GraphPlan(mode=mode, capture_sizes=())
    query_length = 1 + speculation.num_speculative_tokens
    cap = args.max_cudagraph_capture_size
    if cap is None:
        cap = _ARCHITECTURE_CAPS.get(model.architecture)
    explicit = cap is not None
    if cap is None:
        blackwell = capability[0] == 10
        widest = release.capture_cap_data_center_blackwell if blackwell else release.capture_cap
        cap = widest if release.capture_rule == "eights" else min(max_num_seqs * query_length * 2, widest)
    cap = min(max_num_batched_tokens, cap)
    if cap < 1:
        raise reject("flag", "Maximum cudagraph size should be greater than or equal to 1 when using cuda graph.")
    sizes = set(_eights(cap) if release.capture_rule == "eights" else capture_grid(cap))
    if max_num_batched_tokens <= cap:
        sizes.add(max_num_batched_tokens)
    if release.capture_rule == "grid_and_decode_sizes" and not explicit:
        sizes |= {size for size in _decode_sizes(max_num_seqs, query_length, cap) if size <= max_num_batched_tokens}
    if not is_v2 and query_length > 1 and mode != "PIECEWISE":
        sizes = _multiples(sizes, query_length, max(sizes))
    return GraphPlan(mode=mode, capture_sizes=tuple(sorted(sizes)))


def capture_grid(cap: int) -> tuple[int, ...]:
    """1, 2, 4, every 8 below 256, every 16 from there, up to `cap`."""
    fine = [size for size in (1, 2, 4) if size <= cap]
    return (*fine, *range(8, min(cap + 1, 256), 8), *range(256, cap + 1, 16))


def _eights(cap: int) -> tuple[int, ...]:
    """1, 2, 4 and every 8 up to `cap` (vLLM 0.8.3 config.py:3705)."""
    return tuple(size for size in (1, 2, 4, *range(8, cap + 1, 8)) if size <= cap)


def _mode(args: EngineArgs, model: ModelSpec, release: Release, speculation: Speculation, uniform_decode: bool) -> str:
    if runs_eager(args, model) or dict(args.env).get("TORCH_COMPILE_DISABLE") == "1":
        return "NONE"
    if model.facts.is_encoder_decoder or model.architecture in _FULL_BY_DEFAULT:
        return "FULL_DECODE_ONLY"
    if not release.decode_graphs or (speculation.num_speculative_tokens and not uniform_decode):
        return "PIECEWISE"
    return "FULL_AND_PIECEWISE"


def _decode_sizes(max_num_seqs: int, query_length: int, cap: int) -> set[int]:
    """Whole decode batches, so that the widest one is captured (vLLM 0.33.0 config/vllm.py _set_cudagraph_sizes)."""
    if query_length == 1:
        return {max_num_seqs} if max_num_seqs <= cap else set()
    requests = min(max_num_seqs, cap)
    return {count * query_length for count in (*capture_grid(requests), requests) if count * query_length <= cap}


def _multiples(sizes: set[int], of: int, largest: int) -> set[int]:
    """The V1 runner rounds sizes up to whole decode steps (compilation.py adjust_cudagraph_sizes_for_spec_decode)."""
    rounded = {-(-size // of) * of for size in sizes}
    return {size for size in rounded if size <= largest} or ({of} if of <= largest else sizes)
