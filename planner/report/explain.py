"""Each figure of an estimate with its formula, the numbers put in and its source: a person can redo it by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

from planner.memory.assess import Assessment, Deployment
from planner.memory.result import PerGpu
from planner.report.explain_device import cache_figures, device_figures
from planner.report.explain_engine import engine_figures
from planner.report.explained import Figure
from planner.units import format_bytes


def explain(assessment: Assessment) -> tuple[Figure, ...]:
    """The figures in the order in which the engine comes to them. Empty where vLLM refuses before any."""
    deployment, estimate = assessment.deployment, assessment.estimate
    if deployment is None or estimate.per_gpu is None or estimate.kv_cache is None:
        return ()
    stage = _stage_index(deployment, estimate.per_gpu)
    return (
        *engine_figures(deployment, stage, estimate.per_gpu),
        *cache_figures(deployment, stage, estimate),
        *device_figures(deployment, stage, estimate.per_gpu),
    )


def _stage_index(deployment: Deployment, per_gpu: PerGpu) -> int:
    same = [index for index, share in enumerate(deployment.shares) if share.parameter_bytes == per_gpu.parameter_bytes]
    return same[0]


def explain_text(assessment: Assessment, figures: tuple[Figure, ...]) -> str:
    """Figures as plain lines: value, rule, the rule with numbers, source, parts."""
    estimate = assessment.estimate
    lines = [f"{estimate.model} on {estimate.gpus}, vLLM {estimate.vllm_version}: {estimate.verdict}"]
    if estimate.engine is not None and assessment.config is not None:
        lines.append(f"model runner {estimate.engine.model_runner}: {assessment.config.model_runner_reason}")
    for figure in figures:
        human = f" ({format_bytes(int(figure.value))})" if figure.unit == "bytes" else ""
        lines += [
            "",
            f"{figure.name} = {figure.value:,} {figure.unit}{human}",
            f"  rule    {figure.formula}",
            f"  numbers {figure.arithmetic}",
            f"  source  {figure.source}",
        ]
        width = max((len(part.name) for part in figure.parts), default=0)
        lines += [
            f"    {part.name.ljust(width)}  {part.bytes:>18,}  {part.arithmetic}".rstrip() for part in figure.parts
        ]
    if estimate.rejection is not None:
        lines += [
            "",
            f"{estimate.rejection.bottleneck}: {estimate.rejection.message}",
            *(f"  try: {fix}" for fix in estimate.rejection.fix),
        ]
    lines += [f"warning: {warning}" for warning in estimate.warnings]
    return "\n".join(lines)


def explain_json(assessment: Assessment, figures: tuple[Figure, ...]) -> str:
    """`vplan.explain/1`: the estimate and the figures."""
    document = {
        "schema": "vplan.explain/1",
        "estimate": assessment.estimate.model_dump(mode="json"),
        "figures": [asdict(figure) for figure in figures],
    }
    return json.dumps(document, indent=1)
