"""`vplan report`: one plan as CSVs, pictures, Markdown and one HTML page."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner import api
from planner.cli.lists import counts_of, need_report_packages, values_of, write_folder
from planner.cli.options import planning_options
from planner.cli.shared_flags import Rank
from planner.errors import InputError


@planning_options(required=False)
def report(
    request: Any,
    output_dir: Annotated[
        str, typer.Option("--output-dir", help="Folder for the files; made where missing.", show_default=False)
    ],
    plan: Annotated[
        str | None,
        typer.Argument(metavar="[PLAN.json]", help="JSON of `vplan fit` or `vplan estimate`.", show_default=False),
    ] = None,
    rank: Rank = 1,
    breakdown_by: Annotated[
        str | None,
        typer.Option(
            "--breakdown-by", help="layer, module, dtype, rank; several with commas. Default: all.", show_default=False
        ),
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(
            "--dtypes",
            help="Side by side: values of --dtype, of --quantization, or kv:VALUE for --kv-cache-dtype.",
            show_default=False,
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", help="Side by side: values of --max-num-seqs.", show_default=False)
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency", help="Requests at once in the load table; several with commas.", show_default=False
        ),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="Values of max-model-len in the load table.", show_default=False)
    ] = None,
) -> None:
    """Write a report of one plan: CSV, Markdown, one self-contained HTML page, and PNGs.

    Example: vplan report --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --max-model-len 8192 --output-dir out
    """
    need_report_packages()
    breakdowns = values_of(breakdown_by, "--breakdown-by")
    concurrencies, longs = counts_of(concurrency, "--concurrency"), counts_of(lengths, "--lengths")
    sizes, kinds = counts_of(batch_sizes, "--batch-sizes"), values_of(dtypes, "--dtypes")
    notes: tuple[str, ...] = ()
    if plan is not None:
        if request.model or request.gpus or request.given:
            raise InputError("give a plan's JSON or --model, --gpus and flags, not both")
        from planner.cli.launched import request_of_plan_alone

        request, notes = request_of_plan_alone(plan, rank, request)
    if not request.model or not request.gpus:
        raise InputError("--model and --gpus are missing (or a plan's JSON)")
    from planner.report.rows import BREAKDOWNS

    for kind in breakdowns:
        if kind not in BREAKDOWNS:
            raise InputError(f"--breakdown-by: choose from {', '.join(BREAKDOWNS)}, not {kind!r}")
    starts, files = api.report(
        request,
        breakdowns=breakdowns or BREAKDOWNS,
        dtypes=kinds,
        batch_sizes=sizes,
        concurrencies=concurrencies,
        lengths=longs,
        notes=notes,
    )
    write_folder(output_dir, files)
    print(f"{len(files)} files in {output_dir}: report.html, report.md, CSVs and PNGs")
    if not starts:
        raise typer.Exit(1)
