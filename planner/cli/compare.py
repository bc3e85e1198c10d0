"""`vplan compare`: plans, models or vLLM releases side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner import api
from planner.cli.lists import need_report_packages, write_folder
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, wants_color, write
from planner.errors import InputError


@planning_options(required=False)
def compare(
    request: Any,
    plans: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B ...",
            help="A plan's JSON; or a model, a GPUS spelling or version=V, with the rest from the flags.",
            show_default=False,
        ),
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option("--output-dir", help="Write CSV, Markdown, HTML and PNGs here too.", show_default=False),
    ] = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Two or more plans side by side, with the difference of every ledger term: what a change costs or frees.

    A word that ends in .json is a plan of `vplan fit` or `vplan estimate`; `version=0.33.0` a release, `gpus=l20:4`
    cards, `FLAG=VALUE` a flag; anything else is a model. What a word leaves open comes from the flags beside it.

    Example: vplan compare version=0.26.0 version=0.33.0 --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1
    """
    check_format(format, ("text", "csv", "markdown"))
    words = plans or []
    if len(words) < 2:
        raise InputError("compare needs at least two plans")
    if len(set(words)) < len(words):
        raise InputError("the same plan is named twice")
    if output_dir is not None:
        need_report_packages()
    assessments = [(word, api.estimate(_request(word, request)).estimate) for word in words]
    from planner.report.compare import compare_document, compare_files, compare_rows, compare_text
    from planner.report.document import markdown
    from planner.report.schema import table_csv

    if output_dir is not None:
        write_folder(output_dir, compare_files(assessments))
    if format == "csv":
        write(table_csv("compare", compare_rows(assessments)), output)
    else:
        document = compare_document(assessments)
        write(markdown(document) if format == "markdown" else compare_text(document, color=wants_color(output)), output)
    if not all(estimate.starts for _, estimate in assessments):
        raise typer.Exit(1)


def _request(word: str, beside: api.Request) -> api.Request:
    from planner.cli.launched import request_of_plan_alone
    from planner.cli.sweep import axis_of

    name, equals, value = word.partition("=")
    if word.endswith(".json"):
        return request_of_plan_alone(word, 1, beside)[0]
    if equals and name == "version":
        request = beside.model_copy(update={"vllm_version": value})
    elif equals and name == "gpus":
        request = beside.model_copy(update={"gpus": value})
    elif equals:
        axis = axis_of(word, word)
        if len(axis.values) != 1:
            raise InputError(f"{word}: one value for each plan")
        args = beside.args.model_copy(update={axis.field: axis.values[0]})
        request = beside.model_copy(update={"args": args, "given": tuple(sorted({*beside.given, axis.field}))})
    else:
        request = beside.model_copy(update={"model": word})
    if not request.model or not request.gpus:
        raise InputError(f"{word}: --model and --gpus are needed beside it")
    return request
