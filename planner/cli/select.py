"""`vplan select`: which cards, and how many, for a model and a load."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner import api
from planner.cli.hardware_load import Load
from planner.cli.lists import counts_of, need_report_packages, values_of, write_folder
from planner.cli.options import planning_options
from planner.cli.output import Format, Output, check_format, wants_color, write
from planner.cli.shared_flags import Images, ImageSize, SafetyMargin, Videos, VideoSeconds
from planner.errors import InputError


@planning_options(required=False)
def select(
    request: Any,
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
    nodes: Annotated[str, typer.Option("--nodes", help="Machines; several numbers with commas.")] = "1",
    only: Annotated[
        str | None, typer.Option("--only", help="Cards to consider, with commas. Default: all.", show_default=False)
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option("--price", help="GPU=USD for a card and hour; repeatable.", show_default=False)
    ] = None,
    buy: Annotated[
        list[str] | None, typer.Option("--buy", help="GPU=USD to buy a card; repeatable.", show_default=False)
    ] = None,
    amortise_months: Annotated[
        int, typer.Option("--amortise-months", help="Months over which bought cards are written off.")
    ] = 36,
    max_usd_per_hour: Annotated[
        float | None, typer.Option("--max-usd-per-hour", help="Budget.", show_default=False)
    ] = None,
    max_usd_to_buy: Annotated[
        float | None, typer.Option("--max-usd-to-buy", help="Budget of a purchase.", show_default=False)
    ] = None,
    vendor: Annotated[
        str | None,
        typer.Option("--vendor", help="Makers of cards: nvidia, amd; several with commas.", show_default=False),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option("--provider", help="Whose offers count: aws, azure, gcp, oci; with commas.", show_default=False),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", help="Regions whose offers count, or the beginning of their names.", show_default=False
        ),
    ] = None,
    max_watts: Annotated[
        int | None, typer.Option("--max-watts", help="Board power of all cards.", show_default=False)
    ] = None,
    rank_by: Annotated[str, typer.Option("--rank-by", help="cost, cost-per-token, gpus, watts or headroom.")] = "cost",
    output_dir: Annotated[
        str | None,
        typer.Option("--output-dir", help="Write CSV, JSON, Markdown, HTML and PNG here too.", show_default=False),
    ] = None,
    format: Format = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Rank every card of the catalog, 1 to 16 in a machine, for a model and a load: fits or why not, capacity, cost.

    --model takes several models with commas between them: each is ranked, and then machines that serve all of them.

    Example: vplan select --model Qwen/Qwen2.5-VL-72B-Instruct-AWQ --concurrency 32 --max-model-len 16384
    """
    check_format(format)
    if not request.model:
        raise InputError("--model is missing")
    first, *others = values_of(request.model, "--model")
    if request.gpus:
        raise InputError("--gpus: select chooses the cards; --only l20,h20 narrows the choice")
    from planner.report.selection import ORDERS, Limits

    if not 1 <= amortise_months <= 240:
        raise InputError(f"--amortise-months must be from 1 to 240, not {amortise_months}")
    if rank_by not in ORDERS:
        raise InputError(f"--rank-by: choose one of {', '.join(ORDERS)}, not {rank_by!r}")
    machines = counts_of(nodes, "--nodes")
    if machines[-1] > 64:
        raise InputError("--nodes: at most 64 machines")
    limits = Limits(
        usd_per_hour=max_usd_per_hour,
        watts=max_watts,
        usd_to_buy=max_usd_to_buy,
        vendors=_words(vendor, "--vendor"),
        providers=_words(provider, "--provider"),
        regions=_words(region, "--region"),
    )
    if unknown := {*limits.vendors} - {"nvidia", "amd"}:
        raise InputError(f"--vendor: choose nvidia or amd, not {', '.join(sorted(unknown))!r}")
    if max_usd_to_buy is not None and not buy:
        raise InputError("--max-usd-to-buy goes with --buy GPU=USD")
    if output_dir is not None:
        need_report_packages()
    load = Load(concurrency, images, image_size, videos, video_seconds, safety_margin, max_gpus_per_node)
    found = api.select(
        request.model_copy(update={"model": first}),
        load.options(request),
        models=others,
        only=values_of(only, "--only"),
        max_count=max_gpus_per_node,
        nodes=machines,
        prices=_prices(price, "--price"),
        bought=_prices(buy, "--buy"),
        months=amortise_months,
        limits=limits,
        order=rank_by,
    )
    if output_dir is not None:
        write_folder(output_dir, found.files())
    write(found.text(format, color=wants_color(output)), output)
    if not any(row["fits"] for row in found.rows):
        raise typer.Exit(1)


def _words(text: str | None, option: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in values_of(text, option))


def _prices(items: list[str] | None, option: str) -> dict[str, float]:
    found = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not equals or not name.strip() or not 0 <= value < 10**9:
            raise InputError(f"{option}: write GPU=USD, for example l20=1.5, not {item!r}")
        found[name.strip()] = value
    return found
