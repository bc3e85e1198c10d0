"""The answer of a hardware selection as rows of the `select` table, and as the files and texts made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.hardware.spec import GpuSpec
from planner.report.prices import HOURS_PER_MONTH, Cost, PriceBook
from planner.report.tables import Cell
from planner.search.roofline import decode_tokens_per_s, prefill_tokens_per_s
from planner.search.select import Choice
from planner.values import Rejection

Row = dict[str, Cell]

ORDERS = ("cost", "cost-per-token", "gpus", "watts", "headroom")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the buyer will not exceed, and whom he buys from; None or empty: no limit.

    `usd_to_buy` limits bought cards only. `vendors` make cards (nvidia, amd), `providers` rent them out (aws, azure,
    gcp, oci), in `regions` named as the provider does, or the beginning of such names.
    """

    usd_per_hour: float | None = None
    watts: int | None = None
    usd_to_buy: float | None = None
    vendors: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()


def selection_rows(
    model: str, version: str, choices: Sequence[Choice], concurrency: int, book: PriceBook, limits: Limits, order: str
) -> list[Row]:
    """A row for each choice, those that fit first, in the order asked for.

    Where dollars decide, dated prices come first, then undated ones, then cards whose price is not known.
    """
    book = replace(book, providers=limits.providers, regions=limits.regions)
    return ranked([_row(model, version, choice, concurrency, book, limits) for choice in choices], order)


def ranked(rows: Sequence[Row], order: str) -> list[Row]:
    """Rows that fit, best first, with their rank; then those that do not, as they came."""
    fits = sorted((row for row in rows if row["fits"]), key=lambda row: _key(row, order))
    rest = [{**row, "rank": None} for row in rows if not row["fits"]]
    return [*({**row, "rank": rank} for rank, row in enumerate(fits, 1)), *rest]


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """The first row of each model and card: its best count, or its largest one where none fits."""
    found: dict[tuple[Cell, Cell], Row] = {}
    for row in rows:
        key = row["model"], row["gpu"]
        if key not in found or not found[key]["fits"]:
            found[key] = row
    return list(found.values())


def together_rows(
    models: Sequence[str],
    version: str,
    choices: Sequence[Sequence[Choice]],
    concurrency: int,
    book: PriceBook,
    limits: Limits,
    order: str,
    most: int,
) -> list[Row]:
    """One machine of one kind of card that serves all models side by side: a row a card.

    Each model has the fewest cards that hold its load; `most` cards go into a machine. `choices`: of each model.
    """
    book = replace(book, providers=limits.providers, regions=limits.regions)
    fewest: list[dict[str, Choice]] = []
    for of_model in choices:
        found: dict[str, Choice] = {}
        for choice in of_model:
            known = found.get(choice.gpu.name)
            if choice.nodes == 1 and (known is None or known.rejection is not None):
                found[choice.gpu.name] = choice
        fewest.append(found)
    name = " + ".join(models)
    return ranked(
        [
            _together(name, version, [found[gpu] for found in fewest], models, concurrency, book, limits, most)
            for gpu in fewest[0]
        ],
        order,
    )


def _together(
    name: str,
    version: str,
    parts: Sequence[Choice],
    models: Sequence[str],
    concurrency: int,
    book: PriceBook,
    limits: Limits,
    most: int,
) -> Row:
    gpu, count = parts[0].gpu, sum(part.count for part in parts)
    refused = next(((model, part.rejection) for model, part in zip(models, parts, strict=True) if part.rejection), None)
    rejection = None
    if refused is not None:
        model, why = refused
        rejection = why.model_copy(update={"message": f"{model}: {why.message}"})
    elif count > most:
        rejection = Rejection(bottleneck="parallelism", message=f"{count} cards, more than {most} in a machine")
    speeds = [_speed(part, concurrency) for part in parts]
    decode, prefill = (_sum([speed[kind] for speed in speeds]) for kind in (0, 1))
    engines = [part.engine for part in parts]
    headrooms = [engine.headroom_bytes for engine in engines if engine]
    return {
        **_row(name, version, Choice(gpu, count, 1, None, 0, rejection), concurrency, book, limits),
        "replicas": sum(part.replicas for part in parts) or None,
        "headroom_bytes": min(headrooms) if len(headrooms) == len(parts) else None,
        "capacity_tokens": sum(part.requests * part.engine.config.max_model_len for part in parts if part.engine),
        "capacity_requests": min(part.requests for part in parts),
        "estimated_decode_tokens_per_s": _rounded(decode, 1),
        "estimated_prefill_tokens_per_s": _rounded(prefill, 1),
        **_cost_cells(book.cost(gpu, count, 1), _watts(gpu, count), decode),
    }


def _sum(values: Sequence[float | None]) -> float | None:
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)


def _watts(gpu: GpuSpec, cards: int) -> int | None:
    return None if gpu.max_power_watts is None else gpu.max_power_watts * cards


def _row(model: str, version: str, choice: Choice, concurrency: int, book: PriceBook, limits: Limits) -> Row:
    gpu, engine = choice.gpu, choice.engine
    cost = book.cost(gpu, choice.count, choice.nodes)
    watts = _watts(gpu, choice.count * choice.nodes)
    if choice.rejection:
        bottleneck, reason = str(choice.rejection.bottleneck), choice.rejection.message
    else:
        bottleneck, reason = _beyond(gpu, cost, watts, limits)
    decode, prefill = _speed(choice, concurrency)
    return {
        "rank": None,
        "model": model,
        "vllm_version": version,
        "gpu": gpu.name,
        "vendor": gpu.vendor,
        "gpus_per_node": choice.count,
        "nodes": choice.nodes,
        "fits": not reason,
        "bottleneck": bottleneck,
        "reason": reason,
        "tensor_parallel_size": engine.tensor_parallel_size if engine else None,
        "pipeline_parallel_size": engine.pipeline_parallel_size if engine else None,
        "replicas": choice.replicas or None,
        "gpu_memory_utilization": engine.gpu_memory_utilization if engine else None,
        "dtype": engine.config.dtype if engine else None,
        "total_memory_bytes": gpu.total_memory_bytes,
        "memory_evidence": gpu.memory_evidence,
        "weights_memory_bytes": engine.weights_memory_bytes if engine else None,
        "headroom_bytes": engine.headroom_bytes if engine else None,
        "capacity_tokens": choice.requests * engine.config.max_model_len if engine else 0,
        "capacity_requests": choice.requests,
        "estimated_decode_tokens_per_s": _rounded(decode, 1),
        "estimated_prefill_tokens_per_s": _rounded(prefill, 1),
        **_cost_cells(cost, watts, decode),
    }


def _cost_cells(cost: Cost | None, watts: int | None, decode: float | None) -> Row:
    """The columns from the price on. Tokens per second and watt are tokens per joule."""
    hourly = cost.usd_per_hour if cost else None
    return {
        "usd_per_gpu_hour": _rounded(cost.usd_per_gpu_hour if cost else None, 6),
        "billed_gpus": cost.billed if cost else None,
        "usd_per_hour": _rounded(hourly, 4),
        "usd_per_month": _rounded(None if hourly is None else hourly * HOURS_PER_MONTH, 2),
        "usd_per_million_tokens": _rounded(hourly / 3600 / decode * 1e6 if hourly is not None and decode else None, 4),
        "usd_to_buy": _rounded(cost.usd_to_buy if cost else None, 2),
        "price_basis": cost.basis if cost else None,
        "price_offer": cost.offer if cost else None,
        "price_region": (cost.region or None) if cost else None,
        "price_source": cost.source if cost else None,
        "price_date": (cost.date or None) if cost else None,
        "watts": watts,
        "estimated_tokens_per_joule": _rounded(decode / watts if decode and watts else None, 4),
    }


def _beyond(gpu: GpuSpec, cost: Cost | None, watts: int | None, limits: Limits) -> tuple[str, str]:
    """The first limit of the buyer that a choice is beyond: a word for it, and a sentence."""
    if limits.vendors and gpu.vendor not in limits.vendors:
        return "vendor", f"made by {gpu.vendor}"
    if (limits.providers or limits.regions) and cost is None:
        return "region", "no offer is known of " + " ".join((*limits.providers, *limits.regions))
    if limits.usd_per_hour is not None and (cost is None or cost.usd_per_hour > limits.usd_per_hour):
        return (
            "budget",
            "no price is known" if cost is None else f"{cost.usd_per_hour:,.2f} USD an hour is above the budget",
        )
    if limits.usd_to_buy is not None and (cost is None or (cost.usd_to_buy or 0) > limits.usd_to_buy):
        return (
            "budget",
            "no price is known" if cost is None else f"{cost.usd_to_buy:,.0f} USD to buy is above the budget",
        )
    if limits.watts is not None and (watts is None or watts > limits.watts):
        return "power", "its power is not known" if watts is None else f"{watts:,} W is above the limit"
    return "", ""


def _speed(choice: Choice, concurrency: int) -> tuple[float | None, float | None]:
    """All replicas together, the requests spread over them."""
    engine = choice.engine
    if engine is None or not choice.replicas:
        return None, None
    each = min(max(concurrency // choice.replicas, 1), engine.requests)
    busy = min(choice.replicas, concurrency)
    decode = decode_tokens_per_s(engine.load, choice.gpu, engine.config.dtype, each)
    prefill = prefill_tokens_per_s(engine.load, choice.gpu, engine.config.dtype)
    return (None if decode is None else decode * busy), (None if prefill is None else prefill * choice.replicas)


def _key(row: Row, order: str) -> tuple[Any, ...]:
    cards = int(row["gpus_per_node"] or 0) * int(row["nodes"] or 0)
    first: dict[str, Any] = {
        "cost": row["usd_per_hour"],
        "cost-per-token": row["usd_per_million_tokens"],
        "gpus": cards,
        "watts": row["watts"],
        "headroom": -int(row["headroom_bytes"] or 0),
    }
    value, price = first[order], row["usd_per_hour"]
    undated = order.startswith("cost") and row["price_date"] == "undated"
    return (
        value is None,
        undated,
        value or 0,
        price is None,
        price or 0,
        cards,
        -int(row["capacity_requests"] or 0),
        row["gpu"],
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection with what it was asked: rows of the `select` table, best first, model by model."""

    title: str
    rows: list[Row]
    concurrency: int
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(row["model"]) for row in self.rows))

    def text(self, kind: str, *, color: bool = False) -> str:
        """As "csv", "json", "markdown" or for a terminal."""
        from planner.report import selection_document as shown
        from planner.report.document import markdown
        from planner.report.schema import table_csv

        if kind == "csv":
            return table_csv("select", self.rows)
        if kind == "json":
            return selection_json(self)
        document = shown.selection_document(self.title, self.rows, self.notes)
        return markdown(document) if kind == "markdown" else shown.terminal(document, color=color)

    def files(self) -> dict[str, bytes]:
        """select.csv, select.json, select.md, select.html and a picture a model in both themes. Needs the `report`
        extra."""
        from planner.report.document import html, markdown
        from planner.report.schema import table_csv
        from planner.report.selection_document import picture_name, selection_document
        from planner.report.selection_figure import cost_against_capacity
        from planner.report.theme import DARK, LIGHT, png

        pictures: dict[str, bytes] = {}
        for place, model in enumerate(self.models):
            mine = [row for row in self.rows if row["model"] == model]
            for theme, suffix in ((LIGHT, ""), (DARK, "_dark")):
                axes = cost_against_capacity(mine, self.concurrency, theme)
                pictures[f"{picture_name(place)}{suffix}.png"] = png(axes, theme)
        document = selection_document(self.title, self.rows, self.notes, pictures=True)
        return {
            "select.csv": table_csv("select", self.rows).encode(),
            "select.json": selection_json(self).encode(),
            "select.md": markdown(document).encode(),
            "select.html": html(document, pictures).encode(),
            **pictures,
        }


def selection_json(selection: Selection) -> str:
    """The rows as objects, with what was asked beside them."""
    answer = {
        "schema": "vplan.select/1",
        "models": list(selection.models),
        "concurrency": selection.concurrency,
        "notes": list(selection.notes),
        "choices": selection.rows,
    }
    return json.dumps(answer, indent=1, ensure_ascii=False) + "\n"
