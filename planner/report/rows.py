"""What an assessment says, as rows of the tables in planner.report.schema: ledgers, parts of the weights, load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from planner.memory.assess import Assessment, available_kv_cache_bytes
from planner.memory.device import Boot
from planner.memory.kv_capacity import request_bytes
from planner.memory.result import Estimate
from planner.memory.runtime import retained_bytes
from planner.report.schema import LEDGER_COLUMNS
from planner.report.tables import Cell
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS
from planner.sharding.rank import Tensor

Row = dict[str, Cell]

BREAKDOWNS = ("layer", "module", "dtype", "rank")
_LAYER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class StageLedger:
    """Both ledgers of one pipeline stage's ranks: bytes by field of PerGpu."""

    stage: int
    ranks: str
    bytes: dict[str, int]


def who(estimate: Estimate) -> Row:
    return {"model": estimate.model, "gpus": estimate.gpus, "vllm_version": estimate.vllm_version}


def stage_ledgers(assessment: Assessment) -> tuple[StageLedger, ...]:
    """Every stage's books; the ranks of a stage are alike. Empty where vLLM refuses before the weights."""
    deployment, per_gpu, cache = assessment.deployment, assessment.estimate.per_gpu, assessment.estimate.kv_cache
    if deployment is None or per_gpu is None or cache is None:
        return ()
    tp = deployment.config.tensor_parallel_size
    names = [column.name for column in LEDGER_COLUMNS]
    if len(deployment.shares) == 1:
        return (StageLedger(0, _ranks(0, tp), {name: getattr(per_gpu, name) for name in names}),)
    found = []
    for index, (share, terms) in enumerate(zip(deployment.shares, assessment.terms, strict=True)):
        stage, blocks = deployment.pool.stages[index], cache.num_gpu_blocks
        boot = Boot(deployment.model, share, deployment.config)
        kept = retained_bytes(boot, deployment.pool, stage, blocks) if blocks else 0
        held = blocks * stage.bytes_per_block
        available = available_kv_cache_bytes(per_gpu.requested_memory_bytes, terms, deployment.config)
        book = {name: getattr(terms, name) for name in names if hasattr(terms, name)} | {
            "total_memory_bytes": per_gpu.total_memory_bytes,
            "requested_memory_bytes": per_gpu.requested_memory_bytes,
            "parameter_bytes": share.parameter_bytes,
            "available_kv_cache_bytes": available,
            "kv_cache_allocated_bytes": held,
            "allocator_retained_bytes": kept,
            "used_after_startup_bytes": terms.device_bytes_beside_cache + held + kept,
            "vision_encoder_runtime_peak_bytes": terms.encoder_runtime_peak_bytes,
        }
        found.append(StageLedger(index, _ranks(index, tp), book))
    return tuple(found)


def _ranks(stage: int, tp: int) -> str:
    return str(stage) if tp == 1 else f"{stage * tp}-{stage * tp + tp - 1}"


def ledger_rows(assessment: Assessment) -> list[Row]:
    rows: list[Row] = []
    for item in stage_ledgers(assessment):
        for ledger, terms in (("engine", ENGINE_TERMS), ("device", DEVICE_TERMS)):
            for term in terms:
                low, high = _interval(assessment.estimate, item, term.field)
                rows.append(
                    {
                        **who(assessment.estimate),
                        "stage": item.stage,
                        "ranks": item.ranks,
                        "ledger": ledger,
                        "term": term.field,
                        "label": term.label,
                        "bytes": item.bytes[term.field],
                        "low_bytes": low,
                        "high_bytes": high,
                    }
                )
    return rows


def _interval(estimate: Estimate, stage: StageLedger, field: str) -> tuple[int | None, int | None]:
    """An uncertain term's least and most, where the estimate gives them and is of this stage."""
    per_gpu = estimate.per_gpu
    if per_gpu is None or per_gpu.used_after_startup_bytes != stage.bytes["used_after_startup_bytes"]:
        return None, None
    return getattr(per_gpu, f"{field}_interval", None) or (None, None)


def breakdown_rows(assessment: Assessment, by: str) -> list[Row]:
    """The tensors of every stage after loading, summed by layer, module, dtype or rank.

    Bytes are one rank's of each stage (by "rank": one row a stage), without the allocator's rounding.
    """
    if assessment.deployment is None:
        return []
    parts: dict[str, tuple[set[str], list[int]]] = {}
    tp = assessment.deployment.config.tensor_parallel_size
    for stage, share in enumerate(assessment.deployment.shares):
        for tensor in share.loaded:
            key = _ranks(stage, tp) if by == "rank" else _part(tensor, by)
            components, sizes = parts.setdefault(key, (set(), [0, 0]))
            components.add(tensor.component)
            sizes[0 if tensor.role == "parameter" else 1] += tensor.size_bytes
    total = sum(sum(sizes) for _, sizes in parts.values())
    ordered = (
        list(parts.items()) if by in ("layer", "rank") else sorted(parts.items(), key=lambda item: -sum(item[1][1]))
    )
    return [
        {
            **who(assessment.estimate),
            "by": by,
            "part": part,
            "component": "+".join(sorted(components)),
            "parameter_bytes": sizes[0],
            "other_bytes": sizes[1],
            "bytes": sum(sizes),
            "share": round(sum(sizes) / total, 6),
        }
        for part, (components, sizes) in ordered
        if sum(sizes)
    ]


def _part(tensor: Tensor, by: str) -> str:
    if by == "dtype":
        return tensor.dtype
    if by == "layer" and tensor.layer is not None:
        return f"layer {tensor.layer}"
    if by == "layer" and tensor.component != "language_model":
        return tensor.component
    path = tensor.module if tensor.name else tensor.module.rpartition(".")[0]
    if by == "layer":
        return path.rpartition(".")[2]
    return _LAYER.sub(".N", path)


def load_rows(assessment: Assessment, lengths: Sequence[int], concurrencies: Sequence[int]) -> list[Row]:
    """Bytes of the fullest rank when it holds `concurrency` requests of `max_model_len` tokens, exact in the cache's
    pages; what is beside the cache is that of the assessed flags."""
    deployment, per_gpu = assessment.deployment, assessment.estimate.per_gpu
    if deployment is None or per_gpu is None:
        return []
    beside_engine = per_gpu.requested_memory_bytes - per_gpu.available_kv_cache_bytes
    beside_device = (
        per_gpu.used_after_startup_bytes - per_gpu.kv_cache_allocated_bytes + per_gpu.vision_encoder_runtime_peak_bytes
    )
    rows: list[Row] = []
    for concurrency in concurrencies:
        for length in lengths:
            one = int(request_bytes(deployment.pool, length, deployment.config.max_num_batched_tokens))
            engine, device = beside_engine + one * concurrency, beside_device + one * concurrency
            rows.append(
                {
                    **who(assessment.estimate),
                    "max_model_len": length,
                    "concurrency": concurrency,
                    "kv_cache_bytes": one * concurrency,
                    "engine_bytes": engine,
                    "device_bytes": device,
                    "fits_budget": engine <= per_gpu.requested_memory_bytes,
                    "fits_device": device <= per_gpu.total_memory_bytes,
                }
            )
    return rows


def estimate_cells(estimate: Estimate) -> Row:
    """Verdict, resolved flags, ledger and cache of one estimate: the columns that several tables share."""
    row: Row = {
        "verdict": estimate.verdict,
        "bottleneck": estimate.rejection.bottleneck if estimate.rejection else "",
        "message": " ".join(estimate.rejection.message.split()) if estimate.rejection else "",
    }
    for name in (
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
    ):
        row[name] = getattr(estimate.engine, name, None)
    for column in LEDGER_COLUMNS:
        row[column.name] = getattr(estimate.per_gpu, column.name, None)
    for name in ("bytes_per_token", "num_gpu_blocks", "capacity_tokens", "max_concurrency"):
        row[name] = getattr(estimate.kv_cache, name, None)
    return row


def variant_rows(flag: str, assessments: Sequence[tuple[str, Assessment]]) -> list[Row]:
    """One row for each value of one flag."""
    return [
        {**who(item.estimate), "flag": flag, "value": value, **estimate_cells(item.estimate)}
        for value, item in assessments
    ]


def int_of(row: Row, name: str) -> int:
    """A cell that holds a whole number."""
    value = row[name]
    assert isinstance(value, int)
    return value
