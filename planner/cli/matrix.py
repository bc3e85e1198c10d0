"""`vplan matrix`: which cards hold which models, without figures."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from planner import api
from planner.cli.hardware_load import Load
from planner.cli.lists import values_of
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, write
from planner.cli.shared_flags import Images, ImageSize, SafetyMargin, Videos, VideoSeconds
from planner.errors import InputError

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
    if not 1 <= jobs <= _MOST_JOBS:
        raise InputError(f"--jobs must be from 1 to {_MOST_JOBS}, not {jobs}")
    if request.gpus:
        raise InputError("--gpus: matrix looks at every card; --only l20,h20 narrows the choice")
    load = Load(concurrency, images, image_size, videos, video_seconds, safety_margin, max_gpus_per_node)
    options = load.options(request)
    if options.args.max_model_len is None or options.args.max_model_len < 1:
        raise InputError("--max-model-len must be a length here: capacity is counted in requests of it")
    first, *others = _models(request, match)
    found = api.matrix(
        request.model_copy(update={"model": first}),
        options,
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
