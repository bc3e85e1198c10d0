"""`vplan matrix`: which cards hold which models, without figures."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from planner import api
from planner.cli.launched import pixels
from planner.cli.lists import values_of
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, write
from planner.cli.shared_flags import Images, ImageSize, SafetyMargin, Videos, VideoSeconds
from planner.errors import InputError
from planner.search.space import SearchOptions, Workload

_MOST_JOBS = 256


@planning_options(required=False)
def matrix(
    request: Any,
    match: Annotated[
        str | None,
        typer.Option("--match", help="Every catalog model with such an id, for example qwen/*.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", help="Requests of max-model-len tokens held at once.")
    ] = 1,
    images: Images = None,
    image_size: ImageSize = None,
    videos: Videos = None,
    video_seconds: VideoSeconds = 30.0,
    safety_margin: SafetyMargin = 0.10,
    max_gpus_per_node: Annotated[
        int, typer.Option("--max-gpus-per-node", help="Cards in one machine, at most 16.")
    ] = 16,
    only: Annotated[
        str | None, typer.Option("--only", help="Cards to consider, with commas. Default: all.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes that share the models.")] = 2,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """For many models at once, the fewest of each card that hold a load: the verdicts of `vplan select`, much faster.

    Models are those of --model (several with commas), those of the catalog that --match names, or the whole catalog.

    Example: vplan matrix --match 'qwen/qwen3-*' --only l20,h20,h200 --concurrency 8 --max-model-len 16384
    """
    check_format(format)
    for name, value, low, high in (
        ("--concurrency", concurrency, 1, 10**6),
        ("--max-gpus-per-node", max_gpus_per_node, 1, 16),
        ("--images", images or 0, 0, 10**4),
        ("--videos", videos or 0, 0, 10**4),
        ("--video-seconds", video_seconds, 0.1, 86400),
        ("--jobs", jobs, 1, _MOST_JOBS),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} must be from {low} to {high}, not {value}")
    if not 0 <= safety_margin < 1:
        raise InputError(f"--safety-margin must be at least 0 and below 1, not {safety_margin}")
    if request.gpus:
        raise InputError("--gpus: matrix looks at every card; --only l20,h20 narrows the choice")
    if "max_model_len" not in request.given or request.args.max_model_len is None or request.args.max_model_len < 1:
        raise InputError("--max-model-len is missing: capacity is counted in requests of that length")
    first, *others = _models(request, match)
    workload = Workload(
        concurrency=concurrency,
        images=images,
        image_size=pixels(image_size),
        videos=videos,
        video_seconds=video_seconds,
    )
    found = api.matrix(
        request.model_copy(update={"model": first}),
        SearchOptions(
            args=request.args,
            given=request.given,
            workload=workload,
            safety_margin=safety_margin,
            confidence=request.confidence,
        ),
        models=others,
        only=values_of(only, "--only"),
        max_count=max_gpus_per_node,
        jobs=jobs,
    )
    write(found.text(format), output)
    if not found.any_fits:
        raise typer.Exit(1)


def _models(request: api.Request, match: str | None) -> tuple[str, ...]:
    if request.model and match is not None:
        raise InputError("--model and --match both name models: give one of them")
    if request.model:
        return values_of(request.model, "--model")
    from planner.sources.model_catalog import load_model_catalog

    known = load_model_catalog(request.model_catalogs).ids()
    if match is None:
        return known
    found = tuple(name for name in known if fnmatchcase(name.casefold(), match.casefold()))
    if not found:
        raise InputError(f"--match {match!r}: no model of the catalog has such an id")
    return found
