"""The deployments that people ask about most, as golden plans: what circulating advice gets wrong, and what holds.

Derived figures are exact. Figures that rest on measured constants are checked by rule, not pinned.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

GIB = 1 << 30


def estimate(vplan, *flags: str) -> dict[str, Any]:
    done = vplan("estimate", *flags, "--format", "json", "--offline")
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["verdict"] == "starts" else 1)
    return answer


def fit(vplan, *flags: str) -> dict[str, Any]:
    done = vplan("fit", *flags, "--format", "json", "--offline")
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["plans"] else 1)
    return answer


def shape(answer: dict[str, Any]) -> dict[str, Any]:
    """What of a fit is derived: layouts, parameters, pages, who was refused and why."""
    plans = [
        {
            "tensor_parallel_size": plan["estimate"]["engine"]["tensor_parallel_size"],
            "kv_cache_dtype": plan["estimate"]["engine"]["kv_cache_dtype"],
            "dtype": plan["estimate"]["engine"]["dtype"],
            "quantization": plan["estimate"]["engine"]["quantization"],
            "attention_backend": plan["estimate"]["engine"]["attention_backend"],
            "parameter_bytes": plan["estimate"]["per_gpu"]["parameter_bytes"],
            "bytes_per_block": plan["estimate"]["kv_cache"]["bytes_per_block"],
            "groups": plan["estimate"]["kv_cache"]["groups"],
        }
        for plan in answer["plans"]
    ]
    plans.sort(key=lambda plan: (plan["kv_cache_dtype"], -plan["tensor_parallel_size"]))
    refused = {item["reason"]: item["example"]["message"] for item in answer["rejected"]}
    return {
        "plans": plans,
        "refused_by_vllm": {
            key: refused[key]
            for key in ("heads_divisibility", "kv_cache_dtype", "quantization_alignment")
            if key in refused
        },
    }


def check_plans(answer: dict[str, Any], margin: float = 0.10) -> None:
    """Every plan keeps its margin, adds up, and says its command."""
    assert answer["plans"]
    for plan in answer["plans"]:
        gpu = plan["estimate"]["per_gpu"]
        need = gpu["used_after_startup_bytes"] + gpu["vision_encoder_runtime_peak_bytes"]
        assert need * (1 + margin) <= gpu["total_memory_bytes"]
        assert plan["headroom_bytes"] == gpu["total_memory_bytes"] - need
        assert shlex.split(plan["command"])[-len(plan["argv"]) :] == plan["argv"]


@pytest.mark.parametrize("model", ["Qwen/Qwen2-VL-72B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"])
def test_1_qwen_vl_72b_on_eight_l20(vplan, golden, model):
    """Usable bytes, not the nominal 48 GB; the circulating flags start today, with room to spare."""
    folklore = estimate(
        vplan, "--model", model, "--gpus", "l20:8", "--tensor-parallel-size", "8", "--dtype", "float16",
        "--gpu-memory-utilization", "0.9", "--max-model-len", "20000", "--enforce-eager",
    )  # fmt: skip
    assert folklore["verdict"] == "starts"
    assert 44 * GIB < folklore["per_gpu"]["total_memory_bytes"] < 45 * GIB
    assert folklore["engine"]["dtype"] == "float16"
    assert folklore["kv_cache"]["max_concurrency"] > 10
    answer = fit(vplan, "--model", model, "--gpus", "l20:8", "--kv-cache-dtype", "auto")
    check_plans(answer)
    golden(f"scenarios/1-{model.split('/')[1]}.json", shape(answer))


def test_2_distill_32b_w4a16_on_eight_4090(vplan, golden):
    """Packed int4 bytes and scales; 40 heads and 8 key-value heads divide by 1, 2, 4 and 8."""
    model = "RedHatAI/DeepSeek-R1-Distill-Qwen-32B-quantized.w4a16"
    answer = fit(vplan, "--model", model, "--gpus", "4090:8", "--kv-cache-dtype", "auto")
    check_plans(answer)
    assert {plan["estimate"]["engine"]["tensor_parallel_size"] for plan in answer["plans"]} >= {2, 4, 8}
    whole = estimate(vplan, "--model", model, "--gpus", "h200:1", "--max-model-len", "8192")
    assert whole["per_gpu"]["parameter_bytes"] == pytest.approx(17.89 * GIB, rel=0.005)
    golden("scenarios/2-distill-32b-w4a16.json", shape(answer))


def test_3_qwen25_vl_7b_on_one_a10(vplan, golden):
    """15.4 GiB of weights and 56 KiB a token, where the formula in circulation says 14 GB and 16 MB."""
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    one = estimate(
        vplan,
        "--model",
        model,
        "--gpus",
        "a10:1",
        "--max-model-len",
        "8192",
        "--limit-mm-per-prompt",
        '{"image": 1, "video": 0}',
    )
    assert one["per_gpu"]["parameter_bytes"] == 16_584_333_312
    assert one["kv_cache"]["bytes_per_token"] == 56 * 1024
    answer = fit(
        vplan, "--model", model, "--gpus", "a10:1", "--images", "4", "--image-size", "1280x720", "--concurrency", "2"
    )
    check_plans(answer)
    assert '{"image": 4, "video": 0}' in answer["plans"][0]["argv"]
    golden("scenarios/3-qwen25-vl-7b-a10.json", shape(answer))


def test_4_qwen25_vl_7b_on_two_a10(vplan, golden):
    """`image=5,video=5` is refused today; JSON is the form."""
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    flags = (
        "--model",
        model,
        "--gpus",
        "a10:2",
        "--tensor-parallel-size",
        "2",
        "--gpu-memory-utilization",
        "0.85",
        "--max-model-len",
        "4096",
        "--max-num-seqs",
        "16",
        "--max-num-batched-tokens",
        "8192",
    )
    old = estimate(vplan, *flags, "--limit-mm-per-prompt", "image=5,video=5")
    assert old["rejection"]["bottleneck"] == "flag"
    assert any('"image": 5' in fix for fix in old["rejection"]["fix"])
    new = estimate(vplan, *flags, "--limit-mm-per-prompt", '{"image": 5, "video": 0}')
    assert new["verdict"] == "starts"
    assert new["per_gpu"]["parameter_bytes"] == 8_294_044_928
    videos = estimate(vplan, *flags, "--limit-mm-per-prompt", '{"image": 5, "video": 5}')
    assert videos["per_gpu"]["vision_encoder_runtime_peak_bytes"] >= new["per_gpu"]["vision_encoder_runtime_peak_bytes"]
    answer = fit(vplan, "--model", model, "--gpus", "a10:2", "--images", "5", "--image-size", "1024x1024")
    check_plans(answer)
    golden("scenarios/4-qwen25-vl-7b-2xa10.json", shape(answer))


def test_5_awq_on_four_t4(vplan, golden):
    """AWQ needs an AWQ checkpoint; a T4 has no bfloat16 and no FlashAttention 2; 28 heads divide by 4, not by 8."""
    plain, awq = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"
    folklore = estimate(
        vplan,
        "--model",
        plain,
        "--gpus",
        "t4:4",
        "--tensor-parallel-size",
        "4",
        "--quantization",
        "awq",
        "--dtype",
        "float16",
    )
    assert folklore["rejection"]["message"] == "Cannot find the config file for awq"
    right = estimate(
        vplan,
        "--model",
        awq,
        "--gpus",
        "t4:4",
        "--tensor-parallel-size",
        "4",
        "--max-model-len",
        "8192",
        "--limit-mm-per-prompt",
        '{"image": 1, "video": 0}',
    )
    assert right["engine"]["dtype"] == "float16"
    assert right["engine"]["attention_backend"] == "TRITON_ATTN"
    wide = estimate(vplan, "--model", awq, "--gpus", "t4:8", "--tensor-parallel-size", "8")
    assert (
        wide["rejection"]["message"]
        == "Total number of attention heads (28) must be divisible by tensor parallel size (8)."
    )
    brain = estimate(vplan, "--model", plain, "--gpus", "t4:4", "--tensor-parallel-size", "4", "--dtype", "bfloat16")
    assert brain["rejection"]["bottleneck"] == "dtype_capability"
    answer = fit(vplan, "--model", awq, "--gpus", "t4:4", "--kv-cache-dtype", "auto")
    check_plans(answer)
    golden("scenarios/5-qwen25-vl-7b-awq-t4.json", shape(answer))


def test_6_qwen25_vl_72b_awq_on_four_a100_40(vplan, golden):
    """29696 / TP stays a multiple of the group of 128 up to TP 8; the tower stays 16-bit."""
    model = "Qwen/Qwen2.5-VL-72B-Instruct-AWQ"
    folklore = estimate(
        vplan, "--model", model, "--gpus", "a100-40g:4", "--tensor-parallel-size", "4",
        "--gpu-memory-utilization", "0.9", "--max-model-len", "16384",
        "--limit-mm-per-prompt", '{"image": 10, "video": 0}',
    )  # fmt: skip
    assert folklore["verdict"] == "starts"
    assert folklore["per_gpu"]["parameter_bytes"] == 10_755_662_848
    answer = fit(
        vplan,
        "--model",
        model,
        "--gpus",
        "a100-40g:4",
        "--images",
        "10",
        "--image-size",
        "1024x1024",
        "--kv-cache-dtype",
        "auto",
    )
    check_plans(answer)
    golden("scenarios/6-qwen25-vl-72b-awq-a100.json", shape(answer))


def test_7_qwen25_vl_72b_awq_on_eight_t4(vplan, golden):
    """43.0 GB of parameters, not 36; FP8 KV cache is refused on compute capability 7.5."""
    model = "Qwen/Qwen2.5-VL-72B-Instruct-AWQ"
    base = (
        "--model",
        model,
        "--gpus",
        "t4:8",
        "--tensor-parallel-size",
        "8",
        "--max-model-len",
        "4096",
        "--limit-mm-per-prompt",
        '{"image": 1, "video": 0}',
    )
    fp8 = estimate(vplan, *base, "--kv-cache-dtype", "fp8")
    assert fp8["rejection"]["bottleneck"] == "kv_cache_dtype"
    assert "FP8 KV cache is not supported by the Triton attention backend on Tesla T4" in fp8["rejection"]["message"]
    plain = estimate(vplan, *base, "--gpu-memory-utilization", "0.75")
    assert plain["per_gpu"]["parameter_bytes"] == 5_380_828_928
    answer = fit(vplan, "--model", model, "--gpus", "t4:8")
    golden("scenarios/7-qwen25-vl-72b-awq-t4.json", shape(answer))
    assert all(plan["estimate"]["engine"]["kv_cache_dtype"] == "auto" for plan in answer["plans"])
    assert any(item["reason"] == "kv_cache_dtype" for item in answer["rejected"])


def test_the_unpadded_72b_is_refused_at_tp_2(vplan, tmp_path):
    """29568 / 2 is no multiple of 128: vLLM's own sentence."""
    shown = vplan("catalog", "models", "show", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ").stdout
    import yaml

    config = next(yaml.safe_load_all(shown))["config"]
    text = json.dumps(config).replace("29696", "29568")
    (tmp_path / "config.json").write_text(text)
    refused = estimate(vplan, "--model", str(tmp_path), "--gpus", "h200:2", "--tensor-parallel-size", "2")
    assert refused["rejection"]["bottleneck"] == "quantization_alignment"
    assert (
        refused["rejection"]["message"]
        == "The input size is not aligned with the quantized weight shape. This can be caused by too large tensor "
        "parallel size."
    )
