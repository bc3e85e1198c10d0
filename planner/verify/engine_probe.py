"""Run by the Python that has vLLM, never imported here: start the engine in this process and write down exact bytes.

usage: python engine_probe.py ANSWER.json serve MODEL [options of vllm serve ...]
The answer: {"vllm", "ranks": [{...}], "config": {...}}. With TP or PP above one the workers are processes of their own.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def parse(words: list[str]) -> Any:
    """The options as `vllm serve` itself parses them."""
    try:
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    except ImportError:
        from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    found = parser.parse_args(words)
    if getattr(found, "model_tag", None):
        found.model = found.model_tag
    return found


def probe(worker: Any) -> dict[str, Any]:
    """One rank's books: what the engine computed, and what the device holds now."""
    import torch

    inner = getattr(worker, "worker", worker)
    runner = inner.model_runner
    model = runner.get_model() if hasattr(runner, "get_model") else runner.model
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_cuda:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    free, total = torch.cuda.mem_get_info()
    cache = getattr(runner, "kv_cache_config", None)
    snapshot = inner.init_snapshot
    return {
        "rank": inner.rank,
        "device_name": torch.cuda.get_device_name(),
        "runner": type(runner).__module__,
        "total_memory_bytes": total,
        "free_bytes": free,
        "startup_free_bytes": snapshot.free_memory,
        "requested_memory_bytes": int(inner.requested_memory),
        "parameter_and_buffer_bytes": sum(seen.values()),
        "weights_memory_bytes": int(runner.model_memory_usage),
        "peak_activation_bytes": getattr(inner, "peak_activation_memory", None),
        "non_torch_bytes": getattr(inner, "non_torch_memory", None),
        "consumed_bytes": getattr(inner, "total_consumed", None),
        "cuda_graph_estimate_bytes": getattr(inner, "cudagraph_memory_estimate", None),
        "available_kv_cache_bytes": getattr(inner, "available_kv_cache_memory_bytes", None),
        "num_gpu_blocks": None if cache is None else cache.num_blocks,
        "kv_cache_allocated_bytes": None if cache is None else sum(tensor.size for tensor in cache.kv_cache_tensors),
        "allocated_bytes": torch.cuda.memory_allocated(),
        "reserved_bytes": torch.cuda.memory_reserved(),
    }


def main() -> None:
    answer, command = sys.argv[1], sys.argv[3:]
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs.from_cli_args(parse(command))
    engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)
    ranks = engine.collective_rpc(probe)
    config = engine.vllm_config
    cache = config.cache_config
    found = {
        "vllm": vllm.__version__,
        "ranks": ranks,
        "config": {
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "block_size": cache.block_size,
            "capacity_tokens": getattr(cache, "kv_cache_size_tokens", None),
            "max_concurrency": getattr(cache, "kv_cache_max_concurrency", None),
            "cudagraph_capture_sizes": list(config.compilation_config.cudagraph_capture_sizes or ()),
        },
    }
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
