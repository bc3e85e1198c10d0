"""Every table byte for byte: how it is written, what is derived in it, and that a second process writes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from planner.memory.assess import Assessment
from planner.report.rows import breakdown_rows
from planner.report.schema import TABLES, table_csv
from planner.report.tables import Cell
from tests.conftest import ROOT
from tests.report.conftest import assessed

GOLDEN = ROOT / "tests" / "golden" / "csv"
HOSTILE = ('=HYPERLINK("http://x";"y")', "+1", "-1", "@A1", "\t=1", "a,b", 'a "quoted" name', "通义千问", "two\nlines")


def _check(name: str, text: str, rewrite: bool) -> None:
    path = GOLDEN / f"{name}.csv"
    if rewrite:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return
    assert path.read_bytes() == text.encode(), (
        f"{name}.csv changed: ./check tests tests/report --rewrite, read the diff"
    )


def _rows(name: str) -> list[dict[str, Cell]]:
    """Three rows of made-up values: by type, with nothing where a figure may be missing, and with texts that bite."""
    columns = TABLES[name].columns
    plain: dict[str, Cell] = {}
    for place, column in enumerate(columns):
        values: dict[str, Cell] = {
            "text": f"{column.name} text", "int": 10**9 + place, "float": place + 0.125, "bool": place % 2 == 0
        }  # fmt: skip
        plain[column.name] = values[column.kind]
    texts = [column.name for column in columns if column.kind == "text"]
    hostile = {text: HOSTILE[place % len(HOSTILE)] for place, text in enumerate(texts)}
    return [plain, dict.fromkeys(plain), {**plain, **hostile}]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_written_as_it_was(name: str, request: pytest.FixtureRequest) -> None:
    _check(f"written_{name}", table_csv(name, _rows(name)), request.config.getoption("--rewrite"))


@pytest.mark.parametrize("name", TABLES)
def test_no_cell_begins_as_a_formula(name: str) -> None:
    import csv
    from io import StringIO

    for row in csv.reader(StringIO(table_csv(name, _rows(name)))):
        assert not [cell for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _number(cell)]


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return not cell.startswith("+")


def test_weights_of_the_72b_on_eight_t4_by_everything(request: pytest.FixtureRequest) -> None:
    plan = assessed(
        "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "t4:8",
        tensor_parallel_size=8, max_model_len=8192, gpu_memory_utilization=0.75,
    )  # fmt: skip
    rows = [row for by in ("module", "dtype", "rank") for row in breakdown_rows(plan, by)]
    _check("breakdown_72b_awq_t4", table_csv("breakdown", rows), request.config.getoption("--rewrite"))


def test_layers_of_a_small_model(text_plan: Assessment, request: pytest.FixtureRequest) -> None:
    text = table_csv("breakdown", breakdown_rows(text_plan, "layer"))
    _check("breakdown_layers_small", text, request.config.getoption("--rewrite"))


PLAN = ["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--offline", "--max-model-len", "4096"]
ONE = [*PLAN, "--gpus", "l20:1"]


@pytest.mark.parametrize(
    "words",
    [
        ["report", *ONE, "--dtypes", "auto,kv:fp8", "--batch-sizes", "8,64"],
        ["sweep", *ONE, "--x", "max-num-seqs=8,64", "--y", "gpu-memory-utilization=0.02,0.9"],
        ["select", *PLAN, "--only", "l20,t4,v100-16gb", "--output", "answer"],
        ["compare", "max-num-seqs=8", "max-num-seqs=64", *ONE, "--output", "answer"],
    ],
    ids=lambda words: words[0],
)
def test_another_process_writes_the_same_bytes(words: list[str], tmp_path: Path) -> None:
    """With another hash seed, locale and time zone."""
    written = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Shanghai")):
        folder = tmp_path / seed
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C.UTF-8" if seed == "1" else "C"}
        env |= {"XDG_CONFIG_HOME": "/dev/null/none"}
        done = subprocess.run(
            [sys.executable, "-m", "planner", *words, "--output-dir", "out"],
            capture_output=True, text=True, cwd=folder, env={**env, "PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        written.append({path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())})
    assert any(name.endswith(".csv") for name in written[0])
    assert written[0].keys() == written[1].keys()
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []
