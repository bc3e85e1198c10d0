"""The tables of a report: what adds up, what grows with what, and CSVs that are safe and the same every time."""

from __future__ import annotations

import csv
from io import StringIO

import pytest

from planner.memory.assess import Assessment
from planner.report.frames import frame
from planner.report.media_rows import media_rows
from planner.report.rows import BREAKDOWNS, breakdown_rows, ledger_rows, load_rows, stage_ledgers
from planner.report.schema import TABLES, schema_markdown, table_csv
from planner.report.terms import DEVICE_TERMS
from tests.conftest import ROOT
from tests.report.conftest import assessed


def test_device_lines_add_up_on_every_stage(staged_plan: Assessment) -> None:
    stages = stage_ledgers(staged_plan)
    assert [stage.ranks for stage in stages] == ["0-1", "2-3"]
    for stage in stages:
        assert (
            sum(stage.bytes[term.field] for term in DEVICE_TERMS if term.letter)
            == stage.bytes["used_after_startup_bytes"]
        )


def test_one_of_the_stages_is_the_estimates(staged_plan: Assessment) -> None:
    per_gpu = staged_plan.estimate.per_gpu
    assert per_gpu is not None
    fullest = {name: getattr(per_gpu, name) for name in ("weights_memory_bytes", "used_after_startup_bytes")}
    assert any(all(stage.bytes[name] == size for name, size in fullest.items()) for stage in stage_ledgers(staged_plan))


def test_every_breakdown_is_of_the_same_tensors(vision_plan: Assessment) -> None:
    sums = {by: sum(row["bytes"] for row in breakdown_rows(vision_plan, by)) for by in BREAKDOWNS}
    assert len(set(sums.values())) == 1
    for by in BREAKDOWNS:
        assert sum(row["share"] for row in breakdown_rows(vision_plan, by)) == pytest.approx(1, abs=1e-4)


def test_layers_and_dtypes_are_named(text_plan: Assessment) -> None:
    layers = [row["part"] for row in breakdown_rows(text_plan, "layer")]
    assert [part for part in layers if part.startswith("layer ")] == [f"layer {index}" for index in range(24)]
    assert "embed_tokens" in layers
    assert breakdown_rows(text_plan, "dtype")[0]["part"] == "bfloat16"


def test_load_counts_pages_of_the_cache(text_plan: Assessment) -> None:
    token_bytes = text_plan.estimate.kv_cache.bytes_per_token
    row = load_rows(text_plan, [1000], [7])[0]
    assert row["kv_cache_bytes"] == 7 * 1008 * token_bytes  # 63 blocks of 16


def test_load_fits_up_to_the_capacity_and_no_further(text_plan: Assessment) -> None:
    cache = text_plan.estimate.kv_cache
    holds = cache.num_gpu_blocks * 16 // 8192
    at, beyond = load_rows(text_plan, [8192], [holds, holds + 1])
    assert at["fits_budget"]
    assert not beyond["fits_budget"]


def test_more_images_never_need_less(vision_plan: Assessment) -> None:
    rows = media_rows(vision_plan)
    by_size: dict[object, list[int]] = {}
    for row in rows:
        by_size.setdefault(row["width_pixels"], []).append(row["vision_encoder_runtime_peak_bytes"])
    assert len(by_size) > 1
    for peaks in by_size.values():
        assert peaks == sorted(peaks)


def test_a_text_model_has_no_media(text_plan: Assessment) -> None:
    assert media_rows(text_plan) == []


def test_what_is_refused_early_has_empty_tables() -> None:
    refused = assessed("Qwen/Qwen2.5-0.5B-Instruct", "t4:1", dtype="bfloat16")
    assert not refused.estimate.starts
    assert ledger_rows(refused) == []
    assert load_rows(refused, [1024], [1]) == []
    assert table_csv("ledger", ledger_rows(refused)).startswith("schema,model,")


def test_csv_is_the_same_every_time_and_has_its_schema(text_plan: Assessment) -> None:
    text = table_csv("ledger", ledger_rows(text_plan))
    assert text == table_csv("ledger", ledger_rows(assessed("Qwen/Qwen2.5-0.5B-Instruct", "l20:1", max_model_len=8192)))
    rows = list(csv.DictReader(StringIO(text)))
    assert {row["schema"] for row in rows} == {"vplan.ledger/1"}
    assert list(rows[0])[1:] == [column.name for column in TABLES["ledger"].columns]


@pytest.mark.parametrize("name", ["=1+1", "+A1", "-2", "@SUM(A1)", '=HYPERLINK("http://x")'])
def test_no_cell_is_a_formula(text_plan: Assessment, name: str) -> None:
    rows = [{**row, "model": name} for row in ledger_rows(text_plan)]
    cells = [row["model"] for row in csv.DictReader(StringIO(table_csv("ledger", rows)))]
    assert set(cells) == {"'" + name}


def test_a_row_of_another_shape_is_refused(text_plan: Assessment) -> None:
    row = ledger_rows(text_plan)[0]
    with pytest.raises(ValueError, match="bytes"):
        table_csv("ledger", [{**row, "bytes": 1.5}])
    with pytest.raises(ValueError, match="columns"):
        table_csv("ledger", [{**row, "more": 1}])


def test_frames_have_the_schemas_types(text_plan: Assessment) -> None:
    table = frame("ledger", ledger_rows(text_plan))
    assert str(table["bytes"].dtype) == "Int64"
    assert str(table["label"].dtype) == "string"


def test_the_documentation_lists_every_column() -> None:
    assert schema_markdown() in (ROOT / "docs" / "reports.md").read_text(encoding="utf-8"), (
        "rewrite the tables of docs/reports.md"
    )
