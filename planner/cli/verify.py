"""`vplan verify`: start the real vLLM as the plan says, and compare what it reports with what was predicted."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli.booting import BootSettings, boot_and_read, python_of
from planner.cli.launched import chosen_request, command_of_plan, pixels, plain_argv, refuse_both
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, write
from planner.cli.shared_flags import CommandInstead, PlanInstead, Rank
from planner.errors import InputError
from planner.serve.launchers import launch_of
from planner.serve.parse import check_command


@planning_options(required=False)
def verify(
    request: Any,
    plan: PlanInstead = None,
    rank: Rank = 1,
    command: CommandInstead = None,
    boot: Annotated[str, typer.Option("--boot", help="server (vllm serve) or engine (exact bytes).")] = "server",
    load_format: Annotated[
        str, typer.Option("--load-format", help="auto (real weights) or dummy (a config.json is enough).")
    ] = "auto",
    emulate: Annotated[
        str | None,
        typer.Option("--emulate", help="A smaller GPU whose memory this one is to have: l20.", show_default=False),
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Only check the command line; needs no GPU.")] = False,
    vllm: Annotated[str, typer.Option("--vllm", help="The vllm executable.")] = "vllm",
    python: Annotated[
        str | None, typer.Option("--python", help="The Python that has vLLM, else that of --vllm.", show_default=False)
    ] = None,
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="WIDTHxHEIGHT of the images sent.", show_default=False)
    ] = None,
    requests: Annotated[bool, typer.Option("--requests/--no-requests", help="Send requests once it serves.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until it must serve.")] = 1800.0,
    log: Annotated[Path | None, typer.Option("--log", help="Keep the engine's log here.", show_default=False)] = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Boot a plan and compare: predicted against measured, term by term, with a verdict.

    Exit code 0: it started and agrees. 1: it did not start, or a term is off. 4: vLLM itself failed.

    Example: vplan verify --model Qwen/Qwen2.5-7B-Instruct --max-model-len 8192
    """
    check_format(format)
    _check(boot, load_format, timeout, emulate)
    refuse_both(plan, command)
    if static:
        _static(_words(request, plan, rank, command), request.version, python or python_of(vllm), output)
        return
    request = chosen_request(plan, rank, command, request)
    args = request.args
    world = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    gpus = request.gpus or ("local" if emulate is None else f"{emulate}:{world}")
    settings = BootSettings(
        boot=boot, dummy=load_format == "dummy", emulate=emulate is not None, vllm=vllm, python=python,
        image_size=pixels(image_size), requests=requests, timeout_seconds=timeout, log=log,
    )  # fmt: skip
    estimate, outcome, notes = boot_and_read(request.model_copy(update={"gpus": gpus}), settings)

    from planner.cli.verify_output import render
    from planner.verify.compare import compare

    comparison = compare(estimate, outcome)
    write(render(format, estimate, outcome, comparison, notes), output)
    if comparison.conclusion != "agrees":
        raise typer.Exit(4 if outcome.status in ("timeout", "crashed") else 1)


def _check(boot: str, load_format: str, timeout: float, emulate: str | None) -> None:
    if boot not in ("server", "engine"):
        raise InputError(f"--boot: choose server or engine, not {boot!r}")
    if load_format not in ("auto", "dummy"):
        raise InputError(f"--load-format: choose auto or dummy, not {load_format!r}")
    if not 0 < timeout <= 86400:
        raise InputError(f"--timeout must be above 0 and at most 86400 seconds, not {timeout}")
    if emulate is not None and not emulate.strip():
        raise InputError("--emulate names no GPU")


def _words(request: Any, plan: Path | None, rank: int, command: str | None) -> list[str]:
    """The command line to check, environment assignments first."""
    if plan is not None:
        command = command_of_plan(plan, rank)
    if command is not None:
        try:
            return shlex.split(command)
        except ValueError as error:
            raise InputError(f"--command: {error}") from None
    if not request.model:
        raise InputError("--model, --plan or --command is missing")
    return plain_argv(request)


def _static(words: list[str], vllm_version: str, python: str, output: str | None) -> None:
    """Let the installed vLLM's parser judge the command, or the release's table of flags where there is none."""
    from planner.verify.static import ask_installed_parser

    launch = launch_of(words)
    if launch is None:
        raise InputError("the command does not start vLLM")
    answer = None
    if launch.launcher == "vllm":
        answer = ask_installed_parser(python, ["vllm", "serve", *launch.argv], os.environ)
    problems = list(check_command(words, vllm_version))
    lines = [shlex.join(words)]
    if answer is not None:
        lines.append(f"checked by the parser of the installed vLLM {answer.vllm_version}")
        if answer.refused is None:
            problems = []
        lines += [f"refused: {answer.refused}"] if answer.refused else ["accepted"]
    else:
        lines.append(f"checked against the flags of vLLM {vllm_version}; no vLLM is installed for {python}")
        lines += [f"refused: {problem.message}" for problem in problems] or ["accepted"]
    lines += [f"instead: {fix}" for problem in problems for fix in problem.fix]
    write("\n".join(lines), output)
    if lines[2] != "accepted":
        raise typer.Exit(1)
