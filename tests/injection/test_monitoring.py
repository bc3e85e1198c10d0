"""Hostile names in what a server says: the monitor's CSV, its gauges, the dashboard, and the terminal."""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from pathlib import Path

import pytest
from hostile import HOSTILE, REFUSED
from prometheus_client.parser import text_string_to_metric_families

from planner.cli.monitor_view import view
from planner.foreign import table_cell
from planner.load.rows import COLUMNS as REQUEST_COLUMNS
from planner.load.rows import Outcome, cells, read_rows
from planner.monitor.csv_log import COLUMNS, AppendedCsv, CsvLog
from planner.monitor.exporter import Exporter, dashboard
from planner.monitor.metrics import read_metrics
from planner.monitor.planned import Planned
from planner.monitor.sample import CardUse, Sample, ServerLook
from planner.report.text import console_for

EVERY = {name: text for name, text in {**HOSTILE, **REFUSED}.items() if name != "half a pair"}
TEXTS = pytest.mark.parametrize("text", EVERY.values(), ids=EVERY.keys())
FORMULA = tuple("=+-@\t\r")


def sample_of(text: str) -> Sample:
    card = CardUse(index=0, used_bytes=None, total_bytes=None, problem=text)
    return Sample(time=1.0, server=ServerLook(model=text, problem=text), cards=(card,), warnings=(text,))


def rows_of(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


def answer_of(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name="{escaped}"}} 1.0\n'


@TEXTS
def test_csv(text, tmp_path):
    log = CsvLog(tmp_path / "log.csv")
    assert log.append(sample_of(text)) is None
    assert log.append(sample_of("x")) is None
    rows = rows_of(tmp_path / "log.csv")
    assert [len(row) for row in rows] == [len(COLUMNS)] * 3
    flat = table_cell(text).replace("\n", " ")
    assert (rows[1][1], rows[1][-1]) == (flat, flat)
    assert not [cell for row in rows for cell in row if cell.startswith(FORMULA) and cell != "-"]


@TEXTS
def test_csv_of_a_load_test(text, tmp_path):
    file = tmp_path / "requests.csv"
    outcome = Outcome(1, "text", 1.0, "failed", 1, 0, 0, 0, problem=text)
    assert AppendedCsv(file, REQUEST_COLUMNS).append_cells(cells(outcome)) is None
    rows = rows_of(file)
    assert [len(row) for row in rows] == [len(REQUEST_COLUMNS)] * 2
    assert not rows[1][-1].startswith(FORMULA)
    assert [read.problem for read in read_rows(file)] == [table_cell(text).replace("\n", " ")]


@TEXTS
def test_gauges(text):
    """The only label is a card's number, so that nothing foreign reaches the text that Prometheus reads."""
    planned = Planned(
        model=text,
        used_bytes=1,
        used_interval=(1, 1),
        peak_bytes=2,
        total_bytes=3,
        capacity_tokens=4,
        lines=((text, 1),),
    )
    exporter = Exporter(0, planned)
    try:
        exporter.update(sample_of(text))
        port = exporter._server.server_address[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            scraped = answer.read().decode()
    finally:
        exporter.close()
    samples = [sample for family in text_string_to_metric_families(scraped) for sample in family.samples]
    assert len(samples) == 10
    assert all(sample.name.startswith("vplan_") for sample in samples)
    assert [sample.labels for sample in samples if sample.labels] == [{"gpu": "0"}] * 3
    assert all(sample.value == 0 for sample in samples if sample.name == "vplan_server_up")


def test_dashboard_names_only_the_gauges():
    document = json.loads(dashboard())
    expressions = {target["expr"] for panel in document["panels"] for target in panel["targets"]}
    legends = {target["legendFormat"] for panel in document["panels"] for target in panel["targets"]}
    assert all(expression.removeprefix("1 - ").removeprefix("vplan_").isidentifier() for expression in expressions)
    assert all(legend.replace("{{gpu}}", "").replace(" ", "").isalpha() for legend in legends)


@TEXTS
def test_a_servers_model_name(text):
    """What a server calls its model is text, and no longer than a name."""
    model = read_metrics(answer_of(text)).model
    assert model is not None
    assert len(model) <= 300 * len(r"\u0000")
    assert all(char.isprintable() or char in "\n\t" for char in model)


@TEXTS
def test_view(text):
    """Nothing in it is markup for rich."""
    buffer = io.StringIO()
    console_for(buffer, color=False, width=40_000).print(view(sample_of(text), None, "http://127.0.0.1:8000"))
    if text in HOSTILE.values():
        assert "".join(text.split()) in "".join(buffer.getvalue().split())
