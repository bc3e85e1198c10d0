"""`vplan speed`: how fast a plan will be, and what its tokens cost, as a labelled estimate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner import api
from planner.cli.launched import request_from_command
from planner.cli.lists import counts_of
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, wants_color, write
from planner.errors import InputError, UnsupportedError


@planning_options(required=False)
def speed(
    request: Any,
    command: Annotated[
        str | None, typer.Option("--command", help="A `vllm serve ...` line instead of flags.", show_default=False)
    ] = None,
    concurrency: Annotated[
        str, typer.Option("--concurrency", help="Requests at once; several numbers with commas.")
    ] = "1,8,32",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Tokens of a prompt.")] = 1024,
    output_tokens: Annotated[int, typer.Option("--output-tokens", help="Tokens of an answer.")] = 256,
    usd_per_hour: Annotated[
        float | None,
        typer.Option("--usd-per-hour", help="Price of one card instead of the catalog's.", show_default=False),
    ] = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Estimate time to the first token, time between tokens, tokens per second and dollars a million of them.

    Example: vplan speed --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --max-model-len 8192 --concurrency 1,16,64
    """
    check_format(format, ("text", "json"))
    if command is not None:
        request = request_from_command(command, request)
    for name in ("model", "gpus"):
        if not getattr(request, name):
            raise InputError(f"--{name} is missing")
    for flag, tokens in (("--prompt-tokens", prompt_tokens), ("--output-tokens", output_tokens)):
        if not 1 <= tokens <= 10**8:
            raise InputError(f"{flag} must be from 1 to 100000000, not {tokens}")
    if usd_per_hour is not None and not 0 <= usd_per_hour < 10**6:
        raise InputError(f"--usd-per-hour must be at least 0 and below 1000000, not {usd_per_hour}")
    counts = counts_of(concurrency, "--concurrency")
    found = api.estimate(request)
    if found.estimate.rejection is not None or found.deployment is None:
        from planner.report.text import estimate_text

        write(found.estimate.to_json() if format == "json" else estimate_text(found.estimate, ""), output)
        raise typer.Exit(1)
    longest = found.deployment.config.max_model_len
    if prompt_tokens + output_tokens > longest:
        raise InputError(f"prompt and answer take {prompt_tokens + output_tokens} tokens, --max-model-len is {longest}")
    answer = api.speed(request, found, counts, prompt_tokens, output_tokens, usd_per_hour)
    if answer is None:
        raise UnsupportedError("speed", f"the catalog knows no bandwidth or FLOPS of {found.deployment.gpus.gpu.name}")
    from planner.report.speed import speed_json, speed_text

    write(speed_json(answer) if format == "json" else speed_text(answer, color=wants_color(output)), output)
