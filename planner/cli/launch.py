"""`vplan launch`: a plan as a command, a container, a manifest or a script, ready to save."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner import api
from planner.cli.launched import chosen_request
from planner.cli.options import planning_options
from planner.cli.output import Output, check_launch_form, write
from planner.cli.shared_flags import CommandInstead, PlanInstead, Rank
from planner.errors import InputError


@planning_options(required=False)
def launch(
    request: Any,
    form: Annotated[
        str,
        typer.Option(
            "--form", help="serve, docker, compose, kubernetes, multinode, ray, xinference, python or download."
        ),
    ] = "serve",
    plan: PlanInstead = None,
    rank: Rank = 1,
    command: CommandInstead = None,
    output: Output = None,
) -> None:
    """Write a plan as one launch form and nothing else. A plan that does not start is refused (exit code 1).

    Example: vplan launch --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --max-model-len 8192 --form kubernetes
    """
    check_launch_form(form, "text")
    request = chosen_request(plan, rank, command, request)
    if not request.gpus:
        raise InputError("--gpus is missing")
    found = api.estimate(request)
    if not found.estimate.starts:
        assert found.estimate.rejection is not None
        rejection = found.estimate.rejection
        typer.echo(f"vplan: does not start: {rejection.bottleneck}: {rejection.message}", err=True)
        raise typer.Exit(1)
    write(api.launch_form(request, found, form), output)
