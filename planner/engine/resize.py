"""The same configuration at other batch sizes, without resolving every flag again."""

from __future__ import annotations

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.graphs import resolve_graphs
from planner.engine.speculative import resolve_speculation
from planner.model.spec import ModelSpec
from planner.releases.choose import release_for


def resized(
    config: EngineConfig, model: ModelSpec, args: EngineArgs, *, max_num_seqs: int, max_num_batched_tokens: int
) -> EngineConfig:
    """`config` with these sizes and the graphs that they capture. The sizes must be ones that vLLM accepts together."""
    graphs = resolve_graphs(
        args, model, release_for(config.vllm_version).release, resolve_speculation(args, model),
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, capability=config.compute_capability,
        uniform_decode="FULL" in config.cudagraph_mode, is_v2=config.model_runner == "v2",
    )  # fmt: skip
    sizes = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    return config.model_copy(update={**sizes, "cudagraph_capture_sizes": graphs.capture_sizes})
