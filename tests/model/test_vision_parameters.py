"""Multimodal models against the parameters and buffers that vLLM 0.26.0's own classes create, rank by rank."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.model.build import build_model
from planner.model.modules import Linear, QKVLinear
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.values import Rejected
from tests.served import H200

TESTS = Path(__file__).parent.parent


def golden() -> list[dict[str, str]]:
    with (TESTS / "golden" / "parameters_vision.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def load(directory: str, **changes: Any) -> ModelSpec:
    folder = TESTS / "data" / "configs" / directory
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    processor = folder / "preprocessor_config.json"
    preprocessor = json.loads(processor.read_text()) if processor.exists() else {}
    return build_model(ModelFiles(name=directory, config=config, preprocessor=preprocessor))


def configure(model: ModelSpec, **flags: Any) -> EngineConfig:
    assert model.vision is not None or "limit_mm_per_prompt" not in flags
    return resolve(model, H200, EngineArgs(**flags), "0.26.0")


def no_media(model: ModelSpec) -> str:
    assert model.vision is not None
    return json.dumps(dict.fromkeys(model.vision.modalities, 0))


def share_of(row: dict[str, str]) -> RankShare:
    model = load(row["config"])
    flags: dict[str, Any] = {
        "tensor_parallel_size": int(row["tp"]),
        "pipeline_parallel_size": int(row["pp"]),
        "enable_expert_parallel": "--enable-expert-parallel" in row["flags"],
        "mm_encoder_tp_mode": "data" if "--mm-encoder-tp-mode data" in row["flags"] else "weights",
    }
    if "--limit-mm-per-prompt 0" in row["flags"]:
        flags["limit_mm_per_prompt"] = no_media(model)
    return shard(model, configure(model, **flags), int(row["rank"]))


def name_of(row: dict[str, str]) -> str:
    return f"{row['config']} {row['flags']} tp{row['tp']} pp{row['pp']} rank{row['rank']}"


@pytest.mark.parametrize("row", golden(), ids=name_of)
def test_rank_holds_what_vllm_creates(row):
    share = share_of(row)
    buffers = sum(tensor.size_bytes for tensor in share.created if tensor.role == "buffer")
    assert (share.parameter_bytes, buffers) == (int(row["parameter_bytes"]), int(row["buffer_bytes"]))


BFLOAT16 = 2


@pytest.mark.parametrize(
    ("directory", "checkpoint_bytes", "more"),
    [
        ("Qwen__Qwen2-VL-7B-Instruct", 16_582_751_232, 0),
        ("Qwen__Qwen2-Audio-7B-Instruct", 16_794_189_824, 0),
        ("deepseek-ai__DeepSeek-OCR", 3_336_106_240 * BFLOAT16, 0),
        ("deepseek-ai__DeepSeek-OCR-2", 3_389_119_360 * BFLOAT16, 0),
        # The vocabulary is padded to a multiple of 64, in the embedding and in the head.
        ("openbmb__MiniCPM-V-2_6", 16_198_350_304, 2 * (151_680 - 151_666) * 3584 * BFLOAT16),
        ("OpenGVLab__InternVL2-2B", 2_205_754_368 * BFLOAT16, 2 * (92_608 - 92_553) * 2048 * BFLOAT16),
        # The feature layer is the one before the last: one CLIP layer and the final norm are not built.
        ("llava-hf__llava-1.5-7b-hf", 14_126_854_144, -(12 * 1024**2 + 13 * 1024 + 2 * 1024) * BFLOAT16),
    ],
)
def test_one_rank_is_the_checkpoint(directory, checkpoint_bytes, more):
    model = load(directory)
    assert shard(model, configure(model)).parameter_bytes == checkpoint_bytes + more


def test_data_mode_copies_the_tower_and_divides_the_rest():
    model = load("Qwen__Qwen2.5-VL-7B-Instruct")

    def tower(**flags: Any) -> int:
        share = shard(model, configure(model, **flags))
        return sum(t.size_bytes for t in share.created if t.component == "vision_tower" and t.role == "parameter")

    whole = tower()
    assert tower(tensor_parallel_size=4, mm_encoder_tp_mode="data") == whole
    assert tower(tensor_parallel_size=4) < whole / 2


def test_data_mode_is_ignored_by_classes_without_it():
    model = load("google__gemma-3-4b-it")
    divided = configure(model, tensor_parallel_size=2)
    asked = configure(model, tensor_parallel_size=2, mm_encoder_tp_mode="data")
    assert shard(model, asked).parameter_bytes == shard(model, divided).parameter_bytes


def test_tower_stays_while_one_of_its_modalities_is_allowed():
    model = load("Qwen__Qwen2.5-VL-7B-Instruct")
    full = shard(model, configure(model)).parameter_bytes
    assert shard(model, configure(model, limit_mm_per_prompt='{"image": 0}')).parameter_bytes == full
    text_only = shard(model, configure(model, limit_mm_per_prompt='{"image": 0, "video": 0}'))
    assert {tensor.component for tensor in text_only.created} == {"language_model"}


def test_omni_limits_drop_one_tower_at_a_time():
    model = load("Qwen__Qwen2.5-Omni-7B-AWQ")
    share = shard(model, configure(model, limit_mm_per_prompt='{"audio": 0}'))
    assert {tensor.component for tensor in share.created} == {"language_model", "vision_tower"}


def test_odd_vision_heads_are_refused_before_the_language_model():
    model = load("Qwen__Qwen2.5-VL-7B-Instruct", num_attention_heads=24, num_key_value_heads=4)
    with pytest.raises(Rejected, match="16 is not divisible by 3"):
        shard(model, configure(model, tensor_parallel_size=3))


def test_vision_mlp_must_divide_too():
    model = load("Qwen__Qwen2.5-VL-7B-Instruct", num_attention_heads=32, num_key_value_heads=8)
    with pytest.raises(Rejected, match="3420 is not divisible by 8"):
        shard(model, configure(model, tensor_parallel_size=8))


@pytest.mark.parametrize("directory", ["Qwen__Qwen3-VL-4B-Instruct", "Qwen__Qwen3-VL-30B-A3B-Instruct"])
def test_qwen3_vl_refuses_pipeline_parallelism(directory):
    model = load(directory)
    with pytest.raises(Rejected, match="No model architectures are specified"):
        shard(model, configure(model, pipeline_parallel_size=2))


def test_awq_leaves_the_tower_in_16_bit():
    model = load("Qwen2.5-VL-72B-Instruct-AWQ-padded")
    share = shard(model, configure(model))
    tower = [tensor for tensor in share.created if tensor.component == "vision_tower" and tensor.role == "parameter"]
    assert {tensor.dtype for tensor in tower} == {"float16"}
    assert any(tensor.dtype == "int32" for tensor in share.created if tensor.component == "language_model")


def test_siglip_mlp_of_unaligned_width_is_never_quantized():
    model = load("google__gemma-3-4b-it")
    linears = [
        module for module in model.modules if isinstance(module, Linear | QKVLinear) and "vision_tower" in module.name
    ]
    assert {module.quantizable for module in linears if ".mlp." in module.name} == {False}
    assert {module.quantizable for module in linears if ".self_attn." in module.name} == {True}


def test_awq_reaches_a_tower_whose_width_it_cannot_divide():
    model = load("openbmb__MiniCPM-V-4_6-AWQ")
    with pytest.raises(Rejected, match="The input size is not aligned with the quantized weight shape"):
        shard(model, configure(model))


def test_transformers_backend_keeps_its_tower_without_media():
    model = load("meta-llama__Llama-3.2-11B-Vision-Instruct")
    full = shard(model, configure(model)).parameter_bytes
    assert shard(model, configure(model, limit_mm_per_prompt='{"image": 0}')).parameter_bytes == full
