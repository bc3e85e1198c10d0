"""What vLLM demands of LoRA flags, and what it makes of them."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.batching import BatchSizes
from planner.engine.speculative import Speculation
from planner.errors import UnsupportedError
from planner.model.spec import ModelSpec
from planner.releases.release import Release
from planner.values import DType, reject

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_DTYPES: dict[str, DType | None] = {"auto": None, "float16": "float16", "bfloat16": "bfloat16"}
_DUAL_STREAM = "VLLM_LORA_ENABLE_DUAL_STREAM"


class Adapters(Struct, frozen=True, kw_only=True):
    """`dtype` None: the model's. `capture_cases`: how often each CUDA graph is captured."""

    dtype: DType | None = None
    capture_cases: int = 1
    warnings: tuple[str, ...] = ()


NO_ADAPTERS = Adapters()


def resolve_adapters(
    args: EngineArgs, model: ModelSpec, release: Release, speculation: Speculation, sizes: BatchSizes
) -> Adapters:
    """Raises Rejected for what vLLM refuses: a rank it does not know, fewer adapters on the host than on the GPU,
    batches too small to hold every request's draft. UnsupportedError for adapters of a vision tower, and for a release
    whose adapter layers were not read.

    Source: vLLM 0.26.0 config/lora.py:27, engine/arg_utils.py:2210, v1/worker/gpu/lora_utils.py:21.
    """
    if args.max_lora_rank not in RANKS:
        choices = ", ".join(map(str, RANKS))
        raise reject("flag", f"argument --max-lora-rank: invalid choice: {args.max_lora_rank} (choose from {choices})")
    if args.lora_dtype not in _DTYPES:
        raise reject("flag", f"lora_dtype: Input should be 'auto', 'float16' or 'bfloat16', found {args.lora_dtype!r}")
    if args.max_cpu_loras is not None and 0 < args.max_cpu_loras < args.max_loras:
        raise reject("flag", f"max_cpu_loras ({args.max_cpu_loras}) must be >= max_loras ({args.max_loras}).")
    tokens = sizes.max_num_seqs * (speculation.num_speculative_tokens + 1)
    if speculation.method is not None and sizes.max_num_batched_tokens < tokens:
        raise reject(
            "batched_tokens",
            "Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens",
            fix=(f"--max-num-batched-tokens {tokens}",),
        )
    _refuse_unmodelled(args, model, release)
    return Adapters(dtype=_DTYPES[args.lora_dtype], capture_cases=_capture_cases(args))


def _refuse_unmodelled(args: EngineArgs, model: ModelSpec, release: Release) -> None:
    if release.evidence != "verified on hardware":
        message = f"LoRA adapters are modelled for vLLM 0.26.0, not for {release.version}"
        raise UnsupportedError("enable_lora", message)
    if dict(args.env).get(_DUAL_STREAM, "0") not in ("", "0"):
        raise UnsupportedError(_DUAL_STREAM, f"--env {_DUAL_STREAM} is not supported by this planner")
    from planner.model.adapters import TRAITS

    traits = TRAITS.get(model.architecture)
    media = traits is not None and traits.language_model and not args.language_model_only
    if args.enable_tower_connector_lora and media:
        raise UnsupportedError(
            "enable_tower_connector_lora", "adapters of a vision tower are not supported by this planner"
        )


def _capture_cases(args: EngineArgs) -> int:
    """Without adapters, with all; with --specialize-active-lora for each power of two of them too."""
    if not args.specialize_active_lora:
        return 2
    counts = [count for count in range(1, args.max_loras + 2) if count & (count - 1) == 0 or count > args.max_loras]
    return 1 + len(counts)
