"""A selection against estimates of single cards, and what any selection promises."""

from __future__ import annotations

import json

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuSpec, Price
from planner.report.prices import PriceBook
from planner.report.schema import table_csv
from planner.report.selection import Limits, Selection, best_of_each
from planner.report.selection_document import price_words
from planner.report.selection_figure import pareto_front
from planner.search.space import SearchOptions, Workload
from planner.sources.hardware_catalog import load_hardware_catalog
from planner.units import MIB

MODEL = "Qwen/Qwen2.5-7B-Instruct"
CARDS = ("t4", "v100-16g", "a10", "l20", "a100-40g", "h200", "mi300x")


def _select(concurrency: int = 16, length: int = 8192, **more: object) -> Selection:
    options = SearchOptions(
        args=EngineArgs(max_model_len=length), given=("max_model_len",), workload=Workload(concurrency=concurrency)
    )
    return api.select(api.Request(model=MODEL, gpus="", offline=True), options, only=CARDS, max_count=4, **more)


@pytest.fixture(scope="module")
def selection() -> Selection:
    return _select()


def test_every_card_and_count_is_a_row(selection: Selection) -> None:
    assert len(selection.rows) == len(CARDS) * 4
    assert len(best_of_each(selection.rows)) == len(CARDS)
    assert [row["rank"] for row in selection.rows if row["fits"]] == list(
        range(1, sum(bool(row["fits"]) for row in selection.rows) + 1)
    )
    assert all(row["fits"] or row["reason"] for row in selection.rows)
    table_csv("select", selection.rows)


def test_rows_agree_with_estimates(selection: Selection) -> None:
    checked = 0
    for row in selection.rows:
        if row["fits"] and row["replicas"] == 1:
            args = EngineArgs(
                tensor_parallel_size=row["tensor_parallel_size"],
                max_model_len=8192,
                max_num_seqs=16,
                gpu_memory_utilization=row["gpu_memory_utilization"],
            )
            request = api.Request(model=MODEL, gpus=f"{row['gpu']}:{row['gpus_per_node']}", offline=True, args=args)
            estimate = api.estimate(request).estimate
            assert estimate.starts
            assert estimate.engine.dtype == row["dtype"]
            assert abs(estimate.per_gpu.weights_memory_bytes - row["weights_memory_bytes"]) < 4 * MIB
            free = estimate.per_gpu.total_memory_bytes - estimate.per_gpu.used_after_startup_bytes
            assert free >= row["headroom_bytes"] - 64 * MIB
            assert int(estimate.kv_cache.max_concurrency) in range(
                row["capacity_requests"] - 1, int(row["capacity_requests"] * 1.1) + 2
            )
            checked += 1
    assert checked >= 4


def test_more_cards_never_hold_less(selection: Selection) -> None:
    for gpu in {row["gpu"] for row in selection.rows}:
        held = [
            row["capacity_requests"]
            for row in sorted(selection.rows, key=lambda row: row["gpus_per_node"])
            if row["gpu"] == gpu
        ]
        assert held == sorted(held)


def test_a_larger_load_fits_on_no_more_choices(selection: Selection) -> None:
    def fits(found: Selection) -> set[tuple[object, object]]:
        return {(row["gpu"], row["gpus_per_node"]) for row in found.rows if row["fits"]}

    assert fits(_select(concurrency=400)) < fits(selection)


def test_what_does_not_fit_says_why(selection: Selection) -> None:
    reasons = {row["gpu"]: row["reason"] for row in selection.rows if not row["fits"]}
    assert "AMD" in reasons["MI300X"]


def test_missing_prices_stay_missing_and_rank_last(selection: Selection) -> None:
    fitting = [row for row in selection.rows if row["fits"]]
    priced = [row["usd_per_hour"] is not None for row in fitting]
    assert True in priced
    assert priced == sorted(priced, reverse=True)
    assert all(row["price_source"] for row in fitting if row["usd_per_hour"] is not None)
    undated = [row["price_date"] == "undated" for row in fitting if row["usd_per_hour"] is not None]
    assert undated == sorted(undated)
    assert True in undated
    for kind in (False, True):
        costs = [row["usd_per_hour"] for row in fitting if row["usd_per_hour"] is not None]
        mine = [cost for cost, is_undated in zip(costs, undated, strict=True) if is_undated is kind]
        assert mine == sorted(mine)


def test_the_front_is_not_beaten(selection: Selection) -> None:
    front = pareto_front(selection.rows)
    assert front
    for row in selection.rows:
        if row["fits"] and row["price_date"] not in (None, "undated"):
            assert any(
                one["usd_per_hour"] <= row["usd_per_hour"] and one["capacity_requests"] >= row["capacity_requests"]
                for one in front
            )


def test_texts_say_that_speeds_are_estimates(selection: Selection) -> None:
    assert "estimates" in selection.text("text")
    assert "(est.)" in selection.text("markdown")
    assert selection.text("csv") == selection.text("csv")


def test_prices_of_the_user_go_first() -> None:
    gpu = load_hardware_catalog().find("l20")
    assert PriceBook({gpu.name: 1.25}, {}).cost(gpu, 4, 1).usd_per_hour == 5
    bought = PriceBook({gpu.name: 1.25}, {gpu.name: 7300.0}, months=10).cost(gpu, 2, 1)
    assert bought.usd_per_hour == pytest.approx(2.0)
    assert "10 months" in bought.offer


def _priced(*offers: tuple[str, float, str]) -> GpuSpec:
    gpu = load_hardware_catalog().find("l20")
    prices = tuple(Price(offer=offer, usd_per_gpu_hour=usd, source="test", date=date) for offer, usd, date in offers)
    return gpu.model_copy(update={"prices": prices})


def test_a_machine_is_paid_for_whole() -> None:
    gpu = _priced(("one", 1.0, "2026-01-01"), ("eight (8 GPUs)", 3.0, "2026-01-01"))
    book = PriceBook({}, {})
    assert book.cost(gpu, 1, 1).usd_per_hour == 1
    assert book.cost(gpu, 3, 1).usd_per_hour == 24
    assert book.cost(gpu, 8, 2).usd_per_hour == 48
    assert "no machine" in book.cost(gpu, 9, 1).offer


def test_dated_prices_go_before_undated_ones() -> None:
    gpu = _priced(("old", 0.1, "undated"), ("new", 1.0, "2026-01-01"))
    assert PriceBook({}, {}).cost(gpu, 1, 1).offer == "new"
    assert PriceBook({}, {}).cost(_priced(), 1, 1) is None


def test_limits_of_the_buyer() -> None:
    limits = Limits(usd_per_hour=20, watts=1500, vendors=("nvidia",), providers=("aws",), regions=("us-",))
    found = _select(limits=limits)
    fitting = [row for row in found.rows if row["fits"]]
    assert fitting
    for row in fitting:
        assert row["usd_per_hour"] <= 20
        assert row["watts"] <= 1500
        assert row["price_offer"].startswith("AWS")
        assert row["price_region"] == "us-east-1"
    reasons = {row["gpu"]: row["reason"] for row in found.rows if not row["fits"]}
    assert "no offer is known of aws us-" in reasons["A10"]
    assert {row["bottleneck"] for row in found.rows if row["reason"].startswith("no offer")} == {"region"}
    assert not [row for row in _select(limits=Limits(vendors=("amd",))).rows if row["fits"]]


def test_a_budget_to_buy() -> None:
    found = _select(bought={"l20": 4000.0}, months=24, limits=Limits(usd_to_buy=8000))
    rows = {row["gpus_per_node"]: row for row in found.rows if row["gpu"] == "L20"}
    assert [rows[count]["fits"] for count in (1, 2, 3)] == [True, True, False]
    assert "12,000 USD to buy" in rows[3]["reason"]
    assert rows[2]["usd_to_buy"] == 8000
    assert rows[2]["usd_per_month"] == pytest.approx(8000 / 24, abs=0.01)
    assert rows[2]["price_basis"] == "buy"


def test_several_models_and_one_machine_for_all() -> None:
    small = "Qwen/Qwen2.5-0.5B-Instruct"
    found = _select(models=(small,))
    both = f"{MODEL} + {small}"
    assert found.models == (MODEL, small, both)
    alone = {model: {row["gpu"]: row for row in best_by_count(found.rows, model)} for model in (MODEL, small)}
    together = [row for row in found.rows if row["model"] == both]
    assert {row["gpu"] for row in together} == {row["gpu"] for row in found.rows}
    for row in together:
        if row["fits"]:
            parts = [alone[model][row["gpu"]] for model in (MODEL, small)]
            assert row["gpus_per_node"] == sum(part["gpus_per_node"] for part in parts) <= 4
            assert row["capacity_requests"] == min(part["capacity_requests"] for part in parts)
    assert any(row["fits"] for row in together)
    assert any((not row["fits"] and "more than 4" in row["reason"]) or "AMD" in row["reason"] for row in together)
    table_csv("select", found.rows)
    assert found.text("markdown").count("The best count of each card") == 3


def best_by_count(rows: list[dict[str, object]], model: str) -> list[dict[str, object]]:
    """The fewest cards of each kind that hold the load."""
    mine = [row for row in rows if row["model"] == model and row["fits"]]
    return [
        min((row for row in mine if row["gpu"] == gpu), key=lambda row: row["gpus_per_node"])
        for gpu in {row["gpu"] for row in mine}
    ]


def test_json_is_the_table(selection: Selection) -> None:
    answer = json.loads(selection.text("json"))
    assert answer["schema"] == "vplan.select/1"
    assert answer["choices"] == selection.rows
    assert answer["models"] == [MODEL]
    assert answer["concurrency"] == 16


def test_every_price_says_its_basis_and_date(selection: Selection) -> None:
    for row in selection.rows:
        if row["usd_per_hour"] is None:
            assert row["price_basis"] is None
            assert price_words(row) == "no price known"
        else:
            assert row["price_basis"] == "rent"
            assert row["price_date"]
            assert ("no dated price" in price_words(row)) == (row["price_date"] == "undated")
