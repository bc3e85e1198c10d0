"""`vplan estimate`: what vLLM will do with exactly these flags."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner import api
from planner.cli.options import planning_options
from planner.cli.output import Format, LaunchForm, Output, check_format, check_launch_form, wants_color, write
from planner.errors import InputError
from planner.memory.assess import Assessment
from planner.memory.result import Estimate
from planner.serve.command import serve_argv, shell_command

if TYPE_CHECKING:
    from planner.serve.parse import RefusedCommand


@planning_options(required=False)
def estimate(
    request: Any,
    command: Annotated[
        str | None,
        typer.Option(
            "--command", help="A whole `vllm serve ...` line instead of --model and flags.", show_default=False
        ),
    ] = None,
    launch_form: LaunchForm = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """What real vLLM will do with exactly these flags: both ledgers of one GPU, the cache, the verdict.

    Example: vplan estimate --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --max-model-len 8192
    """
    check_format(format)
    check_launch_form(launch_form, format)
    if not request.gpus:
        raise InputError("--gpus is missing")
    if command is None:
        assessment = _assess(request)
    else:
        from planner.serve.parse import RefusedCommand

        try:
            request, notes = _from_command(command, request)
            assessment = _assess(request, notes)
        except RefusedCommand as refused:
            assessment = _refused(request, refused)
    result = assessment.estimate
    if launch_form is not None and result.starts:
        from planner.cli.launched import answer_with_form

        write(answer_with_form(request, assessment, launch_form, color=wants_color(output)), output)
    elif format == "json":
        write(result.to_json(), output)
    elif format == "text":
        from planner.report.text import estimate_text

        line = ""
        if assessment.config is not None:
            argv = serve_argv(request.model, request.args, assessment.config, request.extra_argv)
            line = shell_command(argv, dict(request.args.env))
        write(estimate_text(result, line, color=wants_color(output)), output)
    else:
        from planner.report.tables import estimate_csv, estimate_markdown

        write(estimate_csv(result) if format == "csv" else estimate_markdown(result), output)
    if not result.starts:
        raise typer.Exit(1)


def _assess(request: api.Request, notes: tuple[str, ...] = ()) -> Assessment:
    if not request.model:
        raise InputError("--model is missing")
    found = api.estimate(request)
    if not notes:
        return found
    return replace(found, estimate=found.estimate.model_copy(update={"warnings": (*notes, *found.estimate.warnings)}))


def _from_command(command: str, beside: api.Request) -> tuple[api.Request, tuple[str, ...]]:
    """The request that a pasted command makes; what is given beside it wins over what is in it."""
    from planner.cli.launched import request_of_parsed
    from planner.serve.parse import parse_command

    parsed = parse_command(command, beside.vllm_version)
    return request_of_parsed(parsed, beside), parsed.warnings


def _refused(request: api.Request, refused: RefusedCommand) -> Assessment:
    """The answer where vLLM's own parser refuses: nothing of the model is read."""
    estimate = Estimate(
        model=request.model or refused.model,
        gpus=request.gpus,
        vllm_version=refused.vllm_version,
        verdict="rejected",
        rejection=refused.rejection,
        engine=None,
        per_gpu=None,
        kv_cache=None,
    )
    return Assessment(estimate)
