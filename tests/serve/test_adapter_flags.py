"""Adapter flags from a pasted command to the rendered one."""

from planner.api import Request, estimate
from planner.serve.command import serve_argv
from planner.serve.parse import parse_command

TEXT = (
    "vllm serve Qwen/Qwen3-8B --max-model-len 4096 --enable-lora --max-loras 4 --max-lora-rank 32 --max-cpu-loras 8 "
    "--lora-dtype bfloat16 --fully-sharded-loras --lora-target-modules q_proj o_proj --lora-modules one=/adapters/one"
)


def test_round_trip() -> None:
    parsed = parse_command(TEXT)
    assert parsed.args.lora_target_modules == ("q_proj", "o_proj")
    assert parsed.args.max_cpu_loras == 8
    assert parsed.extra == ("--lora-modules", "one=/adapters/one")
    found = estimate(Request(model=parsed.model, gpus="h200:1", args=parsed.args))
    assert found.config is not None
    argv = serve_argv(parsed.model, parsed.args, found.config, parsed.extra)
    again = parse_command(" ".join(argv))
    assert {name: getattr(again.args, name) for name in _FIELDS} == {
        name: getattr(parsed.args, name) for name in _FIELDS
    }


_FIELDS = (
    "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype", "fully_sharded_loras",
    "lora_target_modules", "specialize_active_lora", "enable_tower_connector_lora",
)  # fmt: skip
