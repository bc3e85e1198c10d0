"""`vplan fit`: search for the flags that fit the cards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from planner import api
from planner.cli.options import planning_options
from planner.cli.output import Format, LaunchForm, Output, check_format, check_launch_form, wants_color, write
from planner.cli.search_flags import SearchFlags, search_flags
from planner.cli.shared_flags import Images, ImageSize, SafetyMargin, Videos, VideoSeconds
from planner.errors import InputError
from planner.search.space import Objective, SearchOptions, Workload

if TYPE_CHECKING:
    from planner.search.analysis import Analysis
    from planner.search.plan import Plan


@planning_options(required=False)
@search_flags
def fit(
    request: Any,
    flags: SearchFlags,
    from_command: Annotated[
        str | None,
        typer.Option(
            "--from-command",
            help="A `vllm serve ...` line that fails: print the cheapest changes that let it start.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[str, typer.Option("--objective", help="context, concurrency or balanced.")] = "balanced",
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", help="Requests held at once, of max-model-len tokens.", show_default=False),
    ] = None,
    min_model_len: Annotated[int, typer.Option("--min-model-len", help="Shortest max-model-len that will do.")] = 1,
    images: Images = None,
    image_size: ImageSize = None,
    videos: Videos = None,
    video_seconds: VideoSeconds = 30.0,
    safety_margin: SafetyMargin = 0.10,
    max_plans: Annotated[int, typer.Option("--max-plans", help="Plans to show.")] = 5,
    launch_form: LaunchForm = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Search tensor parallelism, lengths, batch sizes, cache dtype and utilization for plans that fit.

    Example: vplan fit --model Qwen/Qwen2.5-VL-72B-Instruct-AWQ --gpus l20:8
    """
    started = time.perf_counter()
    check_format(format)
    check_launch_form(launch_form, format)
    if from_command is not None:
        if launch_form is not None:
            raise InputError("--launch-form: give the command that the ladder prints to vplan launch --command")
        from planner.cli.ladder import answer_ladder

        answer_ladder(from_command, request, concurrency or 1, format, output)
        return
    for name in ("model", "gpus"):
        if not getattr(request, name):
            raise InputError(f"--{name} is missing")
    options = _options(
        request,
        objective,
        concurrency,
        min_model_len,
        images,
        image_size,
        videos,
        video_seconds,
        safety_margin,
        max_plans,
    )
    request, options = flags.placed(request), flags.applied(options)
    result = api.fit(request, options)
    analysis = None
    if flags.pareto or flags.sensitivity or flags.variants or not result.plans:
        analysis = api.analyse(
            request, options, result, pareto=flags.pareto, sensitivity=flags.sensitivity, variants=flags.variants
        )
    elapsed = time.perf_counter() - started
    heading = f"{request.model} on {request.gpus}, vLLM {request.version}"
    from planner.report.fit import Launch, fit_json

    launches = [Launch(*launch) for launch in api.launches(request, result)]
    parts = _parts(request, analysis)
    if format == "json":
        write(fit_json(result, launches, elapsed, parts), output)
    elif format == "text":
        from planner.report.fit_text import fit_text

        text = fit_text(heading, result, launches if launch_form is None else (), elapsed, color=wants_color(output))
        if analysis is not None:
            from planner.report.fit_analysis import analysis_text

            text = f"{text.rstrip()}\n{analysis_text(analysis, parts, color=wants_color(output))}"
        if launch_form is not None and result.plans:
            best = result.plans[0]
            form = api.launch_form(request.model_copy(update={"args": best.args}), best.assessment, launch_form)
            text = f"{text.rstrip()}\n\n# plan 1\n{form}"
        write(text, output)
    else:
        from planner.report.tables import fit_csv, fit_markdown

        write(fit_csv(result, launches) if format == "csv" else fit_markdown(heading, result, launches), output)
    if not result.plans:
        raise typer.Exit(1)


def _parts(request: Any, analysis: Analysis | None) -> dict[str, Any]:
    """The keys that an analysis adds to the JSON."""
    if analysis is None:
        return {}
    from planner.report.fit_analysis import analysis_record

    def command(plan: Plan, model: str) -> str:
        return api.plan_command(request, plan, model)

    return analysis_record(analysis, command)


def _options(
    request: Any, objective: str, concurrency: int | None, min_model_len: int, images: int | None,
    image_size: str | None,
    videos: int | None, video_seconds: float, safety_margin: float, max_plans: int,
) -> SearchOptions:  # fmt: skip
    if objective not in get_args(Objective):
        raise InputError(f"--objective: choose context, concurrency or balanced, not {objective!r}")
    for name, value, least in (
        ("--concurrency", concurrency, 1),
        ("--images", images, 0),
        ("--videos", videos, 0),
        ("--min-model-len", min_model_len, 1),
        ("--max-plans", max_plans, 1),
    ):
        if value is not None and not least <= value <= 10**9:
            raise InputError(f"{name} must be from {least} to 1000000000, not {value}")
    if not 0 <= safety_margin < 1:
        raise InputError(f"--safety-margin must be at least 0 and below 1, not {safety_margin}")
    if not 0 < video_seconds <= 86400:
        raise InputError(f"--video-seconds must be above 0 and at most 86400, not {video_seconds}")
    return SearchOptions(
        objective=cast(Objective, objective), safety_margin=safety_margin, args=request.args, given=request.given,
        max_plans=max_plans, confidence=request.confidence,
        workload=Workload(
            concurrency=concurrency, min_model_len=min_model_len, images=images, image_size=_pixels(image_size),
            videos=videos, video_seconds=video_seconds,
        ),
    )  # fmt: skip


def _pixels(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1024, 1024
    width, cross, height = text.lower().partition("x")
    if (
        not cross
        or not width.isdigit()
        or not height.isdigit()
        or not 0 < int(width) <= 65536
        or not 0 < int(height) <= 65536
    ):
        raise InputError(f"--image-size: write WIDTHxHEIGHT in pixels, for example 1920x1080, not {text!r}")
    return int(width), int(height)
