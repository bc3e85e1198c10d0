"""One call of each family's encoder, tensor by tensor, as vLLM's and transformers' forward methods were read.

The Qwen towers agree with runs on an H200; the others were derived from code, so that here each tensor is written out:
a change of a size, an order or a lifetime is a line of a diff (`./check tests --rewrite`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.encoder import encoder_program, profiled_encoder
from planner.memory.multimodal.media import media_item
from planner.memory.multimodal.run_tower import quantizes_inputs
from planner.memory.program import Program
from planner.model.build import build_model
from planner.model.modules import Linear
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_folder import load_folder
from tests.memory.pass_cases import check_text, program_lines, set_up

TWO = {"gpus": "h200:2", "tensor_parallel_size": 2}
SERVED = "served_configs.json "
PAGE = ("image", 1000, 700, 0)
CLIP = ("video", 320, 240, 4)
SOUND = ("audio", 0, 0, 7)

CALLS: dict[str, tuple[str, dict[str, Any], list[tuple[str, int, int, float]]]] = {
    "qwen2 vl": ("Qwen__Qwen2-VL-7B-Instruct", TWO, [PAGE, PAGE]),
    "qwen2.5 vl": ("Qwen__Qwen2.5-VL-7B-Instruct", TWO, [PAGE, ("image", 300, 300, 0)]),
    "qwen2.5 vl each rank its images": (
        "Qwen__Qwen2.5-VL-7B-Instruct", TWO | {"mm_encoder_tp_mode": "data"}, [PAGE, ("image", 300, 300, 0), PAGE],
    ),
    "qwen2.5 vl video on a T4": ("Qwen__Qwen2.5-VL-7B-Instruct", {"gpus": "t4:4", "tensor_parallel_size": 4}, [CLIP]),
    "qwen2.5 omni sound": ("Qwen__Qwen2.5-Omni-7B-AWQ", {}, [SOUND, SOUND]),
    "qwen3 vl": ("Qwen__Qwen3-VL-8B-Instruct", {}, [PAGE]),
    "qwen3 omni": ("made__q3omni", TWO, [PAGE]),
    "qwen3 omni sound": ("made__q3omni", TWO, [SOUND] * 80),
    "qwen2 audio": ("Qwen__Qwen2-Audio-7B-Instruct", {}, [SOUND]),
    "glm 4.1v": ("made__glm41v", TWO, [PAGE]),
    "dots ocr": (SERVED + "dotsocr", {}, [PAGE]),
    "ernie": (SERVED + "ernie45vl", {}, [CLIP]),
    "llava": ("llava-hf__llava-1.5-7b-hf", TWO, [PAGE]),
    "granite vision": ("made__granite-vision", {}, [PAGE]),
    "llava onevision": ("made__llava-onevision-05", {}, [CLIP]),
    "gemma 3": ("google__gemma-3-4b-it", TWO, [PAGE]),
    "gemma 4": ("google__gemma-4-26B-A4B", {}, [PAGE]),
    "gemma 4 video": ("google__gemma-4-26B-A4B", {}, [CLIP]),
    "gemma 4 sound": ("google__gemma-4-E2B-it", {}, [SOUND]),
    "internvl": ("made__internvl3-hf", TWO, [PAGE]),
    "idefics3": ("made__smolvlm-256", {}, [PAGE]),
    "minicpm-v": ("openbmb__MiniCPM-V-2_6", {}, [PAGE]),
    "llama 4": ("meta-llama__Llama-4-Scout-17B-16E-Instruct", {"gpus": "h200:8", "tensor_parallel_size": 8}, [PAGE]),
    "kimi vl": ("made__kimi-vl", {}, [PAGE]),
    "mistral 3": ("made__mistral3", TWO, [PAGE, ("image", 300, 300, 0)]),
    "pixtral": ("made__pixtral-hf", {}, [PAGE]),
    "paddleocr": ("PaddlePaddle__PaddleOCR-VL", {}, [PAGE]),
    "minimax m3": ("made__minimax-m3-vl", TWO, [PAGE]),
    "deepseek ocr": ("deepseek-ai__DeepSeek-OCR", {}, [("image", 300, 300, 0), PAGE]),
    "deepseek vl2": (SERVED + "deepseekvl2", TWO, [PAGE]),
    "aria": (SERVED + "aria", {}, [PAGE]),
    "lfm2 vl": (SERVED + "lfm2vl", {}, [PAGE]),
    "step3 vl": (SERVED + "step3vl", {"gpus": "h200:8", "tensor_parallel_size": 8}, [PAGE]),
    "cohere2 vision": (SERVED + "cohere2vision", TWO, [PAGE]),
    "kimi vl two images": ("made__kimi-vl", {}, [PAGE, ("image", 300, 300, 0)]),
    "dots ocr two images": (SERVED + "dotsocr", {}, [PAGE, ("image", 300, 300, 0)]),
    "ernie two images": (SERVED + "ernie45vl", {}, [PAGE, ("image", 300, 300, 0)]),
    "paddleocr two images": ("PaddlePaddle__PaddleOCR-VL", {}, [PAGE, ("image", 300, 300, 0)]),
    "idefics3 two images": ("made__smolvlm-256", {}, [PAGE, ("image", 300, 300, 0)]),
    "pixtral two images": ("made__pixtral-hf", {}, [PAGE, ("image", 300, 300, 0)]),
    "paligemma": (SERVED + "paligemma", {}, [PAGE]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_encoder_call(name: str, request: pytest.FixtureRequest) -> None:
    source, flags, media = CALLS[name]
    model, share, config = set_up(source, **flags)
    assert model.vision is not None
    items = [
        media_item(model.vision, modality, width=width, height=height, seconds=seconds)  # type: ignore[arg-type]
        for modality, width, height, seconds in media
    ]
    lines = program_lines(encoder_program(model, share, config, items))
    check_text(f"encoder of {name}", lines, request)


PIXTRAL: dict[str, Any] = {
    "dim": 512, "n_layers": 4, "head_dim": 64, "hidden_dim": 1024, "n_heads": 8, "n_kv_heads": 2, "norm_eps": 1e-5,
    "vocab_size": 32000, "rope_theta": 1e9, "max_position_embeddings": 8192, "dtype": "bfloat16",
    "vision_encoder": {
        "hidden_size": 256, "num_channels": 3, "image_size": 512, "patch_size": 16, "rope_theta": 10000.0,
        "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "image_token_id": 10,
    },
}  # fmt: skip


def test_a_pixtral_of_params_json(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its tower is Mistral's own: rotation by complex numbers, one mask over the batch."""
    (tmp_path / "params.json").write_text(json.dumps(PIXTRAL))
    (tmp_path / "consolidated.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    model = build_model(load_folder(tmp_path, name="pixtral"))
    config = resolve(model, parse_gpus("h200:1").gpu, EngineArgs(max_model_len=4096), "0.26.0")
    assert model.vision is not None
    items = [media_item(model.vision, "image", width=width, height=300) for width in (400, 200)]
    lines = program_lines(encoder_program(model, shard(model, config), config, items))
    check_text("encoder of pixtral of params.json", lines, request)


@pytest.mark.parametrize("name", ["qwen2.5 vl", "gemma 4", "llava"])
def test_a_profiled_batch(name: str, request: pytest.FixtureRequest) -> None:
    """V1 keeps the input beside the embeddings, and the kernels' workspaces are taken here first."""
    source, flags, _ = CALLS[name]
    model, share, config = set_up(source, **flags, env=(("VLLM_USE_V2_MODEL_RUNNER", "0"),))
    program = Program()
    profiled_encoder(program, model, share, config)
    counts = [f"{item.modality}: {count}" for item, (_, count) in zip(*_budget(model, config), strict=True)]
    check_text(f"profiled encoder of {name}", [*counts, *program_lines(program)], request)


def _budget(model: Any, config: Any) -> tuple[Any, Any]:
    budget = encoder_budget(model, config)
    return budget.largest, budget.items


@pytest.mark.parametrize(
    ("module", "name", "dtype", "quantized"),
    [
        ("tower", "weight", "float8_e4m3fn", True),
        ("tower", "weight", "float8_e5m2", True),
        ("tower", "weight_scale", "float8_e4m3fn", False),
        ("tower", "weight", "bfloat16", False),
        ("language", "weight", "float8_e4m3fn", False),
    ],
)
def test_a_tower_quantizes_its_inputs_where_its_own_weights_are_fp8(
    module: str, name: str, dtype: Any, quantized: bool
) -> None:
    model, share, config = set_up("Qwen__Qwen3-VL-8B-Instruct")
    kinds = {"tower": "vision_tower", "language": "language_model"}
    linear = next(m for m in model.modules if isinstance(m, Linear) and m.component == kinds[module])
    stored = next(one for one in share.loaded if one.module == linear.name and one.name == "weight")
    loaded = replace(share, loaded=(replace(stored, name=name, dtype=dtype),))
    fp8 = config.model_copy(update={"quantization": "fp8"})
    assert quantizes_inputs(model, loaded, fp8) is quantized
    assert not quantizes_inputs(model, loaded, config)
    assert not quantizes_inputs(model, loaded, fp8.model_copy(update={"compute_capability": (8, 6)}))
    assert quantizes_inputs(model, loaded, fp8.model_copy(update={"compute_capability": (8, 9)})) is quantized
