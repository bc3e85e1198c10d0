"""Set vplan's predictions against figures that others measured and published: verification/published.csv.

Reads verification/published_figures.csv; docs/published.md explains the result. Run from the repository root.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.api import Request, estimate
from planner.engine.args import EngineArgs
from planner.errors import PlannerError
from planner.memory.assess import Assessment
from planner.memory.device import Boot
from planner.units import GIB

MODELS = "verification/published_models.yaml"
FIGURES = Path("verification/published_figures.csv")
TABLE = Path("verification/published.csv")
TERMS = {
    "weights": ("weights_gib", "weights_memory_bytes"),
    "peak": ("peak_activation_gib", "peak_activation_bytes"),
    "non_torch": ("non_torch_gib", "non_torch_bytes"),
    "graphs": ("cudagraph_gib", "cuda_graph_actual_bytes"),
    "kv": ("kv_avail_gib", "available_kv_cache_bytes"),
}
"""Column prefix: the published column, the field of the estimate."""

CARDS = (
    ("H100", "h100"), ("H200", "h200"), ("B200", "b200"), ("A100 80GB PCIe", "a100-80g-pcie"),
    ("A100-80GB", "a100-80g"), ("A100-SXM4-80GB", "a100-80g"), ("A100 80GB", "a100-80g"), ("A100-40GB", "a100-40g"),
    ("RTX 4090", "4090"), ("L4", "l4"), ("RTX A6000", "a6000"), ("80GB-class (79.19", "h100"),
)  # fmt: skip

FP8_DYNAMIC = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True,
            },
        }
    },
}  # fmt: skip
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True,
            },
        }
    },
}  # fmt: skip
INT8_VISION = {**INT8, "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]}

FULL = (["full_attention"], ["mla_attention"])

KNOWN_AS: dict[str, tuple[str, dict[str, Any]]] = {
    "RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic": (
        "meta-llama/Llama-3.3-70B-Instruct", {"quantization_config": FP8_DYNAMIC}),
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": (
        "meta-llama/Llama-3.3-70B-Instruct", {"quantization_config": FP8_DYNAMIC}),
    "RedHatAI/Qwen2.5-7B-Instruct-fp8-dynamic": ("Qwen/Qwen2.5-7B-Instruct", {"quantization_config": FP8_DYNAMIC}),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8": (
        "meta-llama/Llama-3.1-8B-Instruct", {"quantization_config": INT8}),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": (
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503", {"tie_word_embeddings": False}),
    "RedHatAI/Mistral-Small-3.1-24B-Instruct-2503-quantized.w8a8": (
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        {"quantization_config": INT8_VISION, "tie_word_embeddings": False}),
    "zai-org/GLM-5.3": ("zai-org/GLM-5.3-FP8", {}),
    "ibm-granite/granite-3.3-8b-instruct": (
        "ibm-granite/granite-3.1-8b-instruct", {"vocab_size": 49159}),
    "deepseek-r1-distill-14b (bf16)": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", {}),
    "deepseek-v2-lite (bf16)": ("deepseek-ai/DeepSeek-V2-Lite", {}),
    "Qwen2.5-VL-72B-Instruct": ("Qwen/Qwen2.5-VL-72B-Instruct", {}),
    "Qwen3-235B-A22B-FP8": ("Qwen/Qwen3-235B-A22B-FP8", {}),
}  # fmt: skip
"""Published name: the catalog model with the same tensors, and the config keys that differ."""


@dataclass(frozen=True)
class Case:
    """One published boot as a request, or why it cannot be one."""

    row: dict[str, str]
    request: Request | None
    skipped: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    with options.figures.open(newline="") as file:
        cases = [_case(row) for row in csv.DictReader(file)]
    lines = [_line(case) for case in cases]
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    _report(lines)


def _case(row: dict[str, str]) -> Case:
    reason = _incomplete(row)
    if reason:
        return Case(row, None, reason)
    card = next((name for part, name in CARDS if part in row["gpu"]), None)
    if card is None:
        return Case(row, None, f"{row['gpu']}: the exact card is not stated")
    known, changes = KNOWN_AS.get(row["model"], (row["model"], {}))
    version = re.search(r"\d+\.\d+(\.\d+)?", row["vllm_version"])
    assert version is not None
    args = _arguments(row, changes)
    count = args.tensor_parallel_size * args.pipeline_parallel_size
    request = Request(
        model=known,
        gpus=f"{card}:{count}{_memory(row['gpu'])}",
        vllm_version=version[0],
        offline=True,
        model_catalogs=(MODELS,),
        args=args,
        confidence="expected",
    )
    return Case(row, request)


def _incomplete(row: dict[str, str]) -> str:
    if "FAILED" in row["notes"] or "FAILED" in row["source"]:
        return "the boot failed, no figures"
    if not any(row[column] for column, _ in TERMS.values()) and not row["kv_tokens"]:
        return "no figure of this ledger"
    if "not stated" in row["vllm_version"]:
        return "the version is not stated"
    if "image" in row["vllm_version"] or "dev" in row["vllm_version"]:
        return f"an image or a development build: {row['vllm_version']}"
    if "V0" in row["vllm_version"] or "V0" in row["notes"] or row["vllm_version"].startswith("~"):
        return "the V0 engine, or a version that is only guessed"
    return ""


def _arguments(row: dict[str, str], changes: dict[str, Any]) -> EngineArgs:
    """The flags that were published. Figures of one source name 0.90 for its plans and 0.92 for its boots."""
    flags = shlex.split(row["flags"].replace("(", " ").replace(")", " ").replace(";", " "))
    given: dict[str, Any] = {"tensor_parallel_size": int(row["tp"])}
    for flag, kind in (
        ("--max-model-len", int), ("--gpu-memory-utilization", float), ("--pipeline-parallel-size", int),
        ("--max-num-seqs", int), ("--dtype", str), ("--kv-cache-dtype", str),
    ):  # fmt: skip
        if flag in flags:
            given[flag[2:].replace("-", "_")] = kind(flags[flags.index(flag) + 1])
    for pattern, name, kind in (
        (r"max_model_len=(\d+)", "max_model_len", int), (r"util (0\.\d+)", "gpu_memory_utilization", float),
        (r"max_num_batched_tokens (\d+)", "max_num_batched_tokens", int),
    ):  # fmt: skip
        found = re.search(pattern, row["flags"])
        if found and name not in given and "default" not in row["flags"]:
            given[name] = kind(found[1])
    if "boots 0.92" in row["flags"]:
        given["gpu_memory_utilization"] = 0.92
    given["enforce_eager"] = "--enforce-eager" in flags
    given["trust_remote_code"] = "--trust-remote-code" in flags
    given["enable_prefix_caching"] = False if "--no-enable-prefix-caching" in flags else None
    if changes:
        given["hf_overrides"] = json.dumps(changes)
    return EngineArgs(**given)


def _memory(gpu: str) -> str:
    found = re.search(r"([\d.]+) GiB", gpu)
    return f"@{found[1]}GiB" if found and "H100-80GB" not in gpu else ""


def _line(case: Case) -> dict[str, str]:
    row = case.row
    line = {
        "source": row["source"], "model": row["model"], "gpu": row["gpu"], "tensor_parallel_size": row["tp"],
        "vllm_version": row["vllm_version"], "flags": row["flags"],
        "kind": "",
    }  # fmt: skip
    assessment: Assessment | None = None
    skipped = case.skipped
    if case.request is not None:
        try:
            assessment = estimate(case.request)
        except PlannerError as error:
            skipped = str(error)
        else:
            if assessment.estimate.per_gpu is None:
                rejection = assessment.estimate.rejection
                skipped = f"refused: {rejection.message if rejection else ''}"
    spec = assessment.deployment.model if assessment is not None and assessment.deployment is not None else None
    if spec is not None:
        line["kind"] = "+".join(
            [("moe" if spec.is_moe else "dense"), *(["hybrid"] if spec.is_hybrid else []),
             *(["multimodal"] if spec.is_multimodal else [])]
        )  # fmt: skip
    if assessment is not None and (not row["kv_avail_gib"] or "--pipeline-parallel-size" in row["flags"]):
        row = {**row, "kv_avail_gib": _cache_of_tokens(row, assessment)}
    for name, (column, field) in TERMS.items():
        line |= _compared(name, _published(row, column), _predicted(row, assessment, field))
    line["skipped"] = skipped
    return line


def _cache_of_tokens(row: dict[str, str], assessment: Assessment) -> str:
    """The published cache in GiB where only its tokens were given, for models whose every layer keeps every token."""
    cache, deployment = assessment.estimate.kv_cache, assessment.deployment
    if (
        not row["kv_tokens"]
        or cache is None
        or deployment is None
        or [group.kind for group in cache.groups] not in FULL
    ):
        return ""
    return str(int(row["kv_tokens"]) * cache.bytes_per_token / GIB) if cache.bytes_per_token else ""


def _published(row: dict[str, str], column: str) -> float | None:
    return float(row[column]) if row[column] else None


def _predicted(row: dict[str, str], assessment: Assessment | None, field: str) -> float | None:
    """The estimate's figure in GiB, as the source of the row counts it.

    Pipelines: the stage whose weights were published, and the cache of the stage that has least, as its tokens were.
    From 0.28 on, non-torch is what was consumed beside the weights; one source gives the peak from the start of the
    profile run, another with the graphs' estimate in it.
    """
    if assessment is None or assessment.estimate.per_gpu is None:
        return None
    per_gpu = assessment.estimate.per_gpu
    size = int(getattr(per_gpu, field))
    if "--pipeline-parallel-size" in row["flags"]:
        published = float(row["weights_gib"]) * GIB
        terms = min(assessment.terms, key=lambda term: abs(term.weights_memory_bytes - published))
        return (size if field == "available_kv_cache_bytes" else int(getattr(terms, field))) / GIB
    if field == "non_torch_bytes":
        size += per_gpu.also_counted_bytes
    if field == "peak_activation_bytes" and "new log format" in row["notes"]:
        size += per_gpu.cuda_graph_estimate_bytes
    elif field == "peak_activation_bytes" and assessment.deployment is not None:
        deployment = assessment.deployment
        size = max(
            Boot(deployment.model, share, deployment.config).peak_activation_bytes for share in deployment.shares
        )
    return size / GIB


def _compared(name: str, published: float | None, predicted: float | None) -> dict[str, str]:
    error = predicted - published if predicted is not None and published is not None else None
    return {
        f"{name}_published_gib": "" if published is None else f"{published:.2f}",
        f"{name}_predicted_gib": "" if predicted is None else f"{predicted:.2f}",
        f"{name}_error_gib": "" if error is None else f"{error:+.2f}",
        f"{name}_error_percent": "" if error is None or not published else f"{100 * error / published:+.1f}",
    }


def _report(lines: list[dict[str, str]]) -> None:
    """The errors by version, on the terminal."""
    for line in lines:
        if line["skipped"]:
            print(f"skipped {line['model']} ({line['vllm_version']}): {line['skipped']}"[:150])
    for line in lines:
        if not line["skipped"]:
            errors = " ".join(f"{name} {line[f'{name}_error_gib'] or '-':>6}" for name in TERMS)
            print(f"{line['vllm_version']:>7} {line['model'][-40:]:40} tp{line['tensor_parallel_size']} "
                  f"{line['gpu'][:10]:10} {errors}  kv% {line['kv_error_percent']}")  # fmt: skip
    for version in sorted({line["vllm_version"] for line in lines}):
        found = [
            abs(float(line["kv_error_percent"]))
            for line in lines
            if line["vllm_version"] == version and line["kv_error_percent"]
        ]
        if found:
            print(f"{version}: {len(found)} rows, mean KV error {statistics.mean(found):.2f} %, max {max(found):.2f} %")


if __name__ == "__main__":
    main()
