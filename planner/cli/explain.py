"""`vplan explain`: every figure with its formula, the numbers put in, and its source."""

from __future__ import annotations

from typing import Any

import typer

from planner import api
from planner.cli.options import planning_options
from planner.cli.output import Output, check_format, write
from planner.errors import InputError


@planning_options()
def explain(request: Any, format: str = "text", output: Output = None) -> None:  # noqa: A002
    """Redo an estimate by hand: each figure's rule, the rule with numbers, its source, and the tensors behind it.

    Example: vplan explain --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --max-model-len 8192
    """
    check_format(format, ("text", "json"))
    if not request.model or not request.gpus:
        raise InputError("--model and --gpus are needed")
    assessment = api.estimate(request)
    from planner.report.explain import explain as figures_of
    from planner.report.explain import explain_json, explain_text

    figures = figures_of(assessment)
    write(explain_json(assessment, figures) if format == "json" else explain_text(assessment, figures), output)
    if not assessment.estimate.starts:
        raise typer.Exit(1)
