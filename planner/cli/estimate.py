"""`vplan estimate`: what vLLM will do with exactly these flags."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner import api
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, wants_color, write
from planner.errors import InputError
from planner.serve.command import serve_argv, shell_command


@planning_options(required=False)
def estimate(
    request: Any,
    command: Annotated[
        str | None,
        typer.Option(
            "--command", help="A whole `vllm serve ...` line instead of --model and flags.", show_default=False
        ),
    ] = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """What real vLLM will do with exactly these flags: both ledgers of one GPU, the cache, the verdict.

    Example: vplan estimate --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --max-model-len 8192
    """
    check_format(format)
    if command is not None:
        from planner.serve.parse import request_from_command

        request = request_from_command(command, request)
    if not request.model:
        raise InputError("--model is missing")
    if not request.gpus:
        raise InputError("--gpus is missing")
    assessment = api.estimate(request)
    result = assessment.estimate
    if format == "json":
        write(result.to_json(), output)
    elif format == "text":
        from planner.report.text import estimate_text

        line = ""
        if assessment.config is not None:
            line = shell_command(serve_argv(request.model, request.args, assessment.config), dict(request.args.env))
        write(estimate_text(result, line, color=wants_color(output)), output)
    else:
        from planner.report.tables import estimate_csv, estimate_markdown

        write(estimate_csv(result) if format == "csv" else estimate_markdown(result), output)
    if not result.starts:
        raise typer.Exit(1)
