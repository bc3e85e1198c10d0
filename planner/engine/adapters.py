"""What vLLM demands of LoRA flags."""

from __future__ import annotations

from planner.engine.args import EngineArgs
from planner.engine.batching import BatchSizes
from planner.engine.speculative import Speculation
from planner.values import reject

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def refuse_adapters(args: EngineArgs, speculation: Speculation, sizes: BatchSizes) -> None:
    """Raises Rejected for a rank vLLM does not know, and for batches too small to hold every request's draft.

    Source: vLLM 0.26.0 config/lora.py:27, engine/arg_utils.py:2229.
    """
    if args.max_lora_rank not in RANKS:
        choices = ", ".join(map(str, RANKS))
        raise reject("flag", f"argument --max-lora-rank: invalid choice: {args.max_lora_rank} (choose from {choices})")
    tokens = sizes.max_num_seqs * (speculation.num_speculative_tokens + 1)
    if speculation.method is not None and sizes.max_num_batched_tokens < tokens:
        raise reject(
            "batched_tokens",
            "Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens",
            fix=(f"--max-num-batched-tokens {tokens}",),
        )
