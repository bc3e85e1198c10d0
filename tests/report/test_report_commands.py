"""`vplan report`, `sweep`, `select` and `compare`, run in this process, and once as real processes."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from planner.cli.main import main
from planner.cli.sweep import axis_of
from planner.errors import InputError

SMALL = ["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--gpus", "l20:1", "--offline", "--max-model-len", "4096"]


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_report_of_flags_with_variants(tmp_path: Path) -> None:
    options = [
        "--dtypes",
        "auto,float16,kv:fp8,awq",
        "--batch-sizes",
        "8,64",
        "--concurrency",
        "1,4",
        "--breakdown-by",
        "layer,dtype",
    ]
    assert main(["report", *SMALL, *options, "--output-dir", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "report.html",
        "report.md",
        "ledger.csv",
        "load.csv",
        "breakdown.csv",
        "variants.csv",
        "ledger.png",
        "ledger_dark.png",
    } <= names
    variants = {(row["flag"], row["value"]): row for row in _rows(tmp_path / "variants.csv")}
    assert variants["dtype", "float16"]["dtype"] == "float16"
    assert variants["dtype", "awq"]["verdict"] == "rejected"
    auto, fp8 = (int(variants["dtype", value]["bytes_per_token"]) for value in ("auto", "kv:fp8"))
    assert auto == 2 * fp8
    assert variants["max_num_seqs", "8"]["max_num_seqs"] == "8"
    assert {row["by"] for row in _rows(tmp_path / "breakdown.csv")} == {"layer", "dtype"}
    assert {row["concurrency"] for row in _rows(tmp_path / "load.csv")} == {"1", "4"}


def test_report_of_a_plan_has_the_plans_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    assert main(["fit", *SMALL, "--format", "json", "--output", str(plan)]) == 0
    assert (
        main(["report", str(plan), "--offline", "--breakdown-by", "rank", "--output-dir", str(tmp_path / "out")]) == 0
    )
    wanted = json.loads(plan.read_text())["plans"][0]
    ledger = {(row["ledger"], row["term"]): int(row["bytes"]) for row in _rows(tmp_path / "out" / "ledger.csv")}
    for term in ("weights_memory_bytes", "available_kv_cache_bytes"):
        assert ledger["engine", term] == wanted["estimate"]["per_gpu"][term]
    assert wanted["command"] in (tmp_path / "out" / "report.md").read_text()


def test_report_of_a_refused_plan_exits_1(tmp_path: Path) -> None:
    refused = ["--model", "Qwen/Qwen2.5-7B-Instruct", "--gpus", "t4:1", "--offline"]
    assert main(["report", *refused, "--breakdown-by", "rank", "--output-dir", str(tmp_path)]) == 1
    assert "rejected" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("not json", "not JSON"),
        ("[]", "JSON object"),
        ('{"schema": "x/1"}', "schema is 'x/1'"),
        ('{"schema": "vplan.fit/1"}', "not a whole plan"),
        ('{"schema": "vplan.fit/1", "plans": []}', "has 0 plans"),
        ('{"schema": "vplan.estimate/1", "engine": null}', "not a whole plan"),
        (
            '{"schema": "vplan.estimate/1", "vllm_version": "0.26.0", "gpus": "l4:1", "engine": null, '
            '"rejection": {"message": "no"}}',
            "refused before its flags were resolved (no)",
        ),
        ('{"schema": "vplan.estimate/1", "engine": {"dtype": 3}}', "not a whole plan"),
    ],
)
def test_a_file_that_is_no_plan(text: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert main(["report", str(path), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert wanted in error
    assert error.count("\n") == 1


def test_sweep_finds_the_frontier(tmp_path: Path) -> None:
    shared = ["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--gpus", "l20:1@4GiB", "--offline", "--max-num-seqs", "16"]
    ranges = ["--x", "max-model-len=4k:32k:*2", "--y", "gpu-memory-utilization=0.3,0.5,0.7"]
    assert main(["sweep", *shared, *ranges, "--output-dir", str(tmp_path)]) == 0
    rows = _rows(tmp_path / "sweep.csv")
    assert len(rows) == 12
    cells = {(float(row["x_value"]), float(row["y_value"])): row for row in rows}
    starts = {place for place, row in cells.items() if row["verdict"] == "starts"}
    assert 0 < len(starts) < 12
    for (x, y), row in cells.items():
        smaller = [place for place in cells if place[1] == y and place[0] <= x]
        assert row["verdict"] != "starts" or set(smaller) <= starts
        assert (row["frontier"] == "True") <= ((x, y) in starts)
        assert bool(row["command"]) == ((x, y) in starts)
    first = (tmp_path / "sweep.csv").read_bytes()
    assert main(["sweep", *shared, *ranges, "--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "sweep.csv").read_bytes() == first


def test_every_frontier_point_has_its_plan(tmp_path: Path) -> None:
    shared = ["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--gpus", "l20:1@4GiB", "--offline", "--max-num-seqs", "16"]
    ranges = ["--x", "max-model-len=4k:32k:*2", "--y", "gpu-memory-utilization=0.3,0.5,0.7"]
    assert main(["sweep", *shared, *ranges, "--output-dir", str(tmp_path)]) == 0
    frontier = [row for row in _rows(tmp_path / "sweep.csv") if row["frontier"] == "True"]
    plans = json.loads((tmp_path / "frontier.json").read_text())["plans"]
    assert len(plans) == len(frontier) > 1
    for rank, (plan, row) in enumerate(zip(plans, frontier, strict=True), 1):
        assert plan["rank"] == rank
        assert plan["command"] == row["command"]
        assert plan["estimate"]["verdict"] == "starts"
        assert plan["estimate"]["kv_cache"]["capacity_tokens"] == int(row["capacity_tokens"])
    again = [
        "report",
        str(tmp_path / "frontier.json"),
        "--rank",
        str(len(plans)),
        "--offline",
        "--breakdown-by",
        "rank",
    ]
    assert main([*again, "--output-dir", str(tmp_path / "one")]) == 0
    ledger = {(row["ledger"], row["term"]): int(row["bytes"]) for row in _rows(tmp_path / "one" / "ledger.csv")}
    wanted = plans[-1]["estimate"]["per_gpu"]["available_kv_cache_bytes"]
    assert ledger["engine", "available_kv_cache_bytes"] == wanted


def test_a_sweep_follows_the_confidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The longest context that fits by expected values is refused where the cache may come out smaller."""
    shared = ["--model", "Qwen/Qwen2.5-7B-Instruct", "--gpus", "a10:1", "--offline", "--gpu-memory-utilization", "0.75"]
    assert main(["estimate", *shared, "--max-model-len", "1024", "--confidence", "expected", "--format", "json"]) == 0
    longest = json.loads(capsys.readouterr().out)["kv_cache"]["capacity_tokens"] - 64
    axes = ["--x", f"max-model-len=1024,{longest}", "--y", "max-num-seqs=256"]
    starts = {}
    for confidence in ("safe", "expected"):
        folder = tmp_path / confidence
        assert main(["sweep", *shared, *axes, "--confidence", confidence, "--output-dir", str(folder)]) == 0
        starts[confidence] = [row["verdict"] for row in _rows(folder / "sweep.csv")]
    assert starts == {"safe": ["starts", "rejected"], "expected": ["starts", "starts"]}


def test_select_as_json_with_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct,Qwen/Qwen2.5-7B-Instruct", "--max-model-len", "4096"]
    limits = ["--vendor", "nvidia", "--provider", "aws", "--region", "us-east", "--nodes", "1,2", "--max-watts", "2000"]
    more = ["--only", "l4,t4,a10g,mi300x", "--max-gpus-per-node", "2", "--offline", "--format", "json"]
    assert main([*words, *limits, *more, "--concurrency", "4", "--output-dir", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "vplan.select/1"
    small, large, both = answer["models"]
    assert both == f"{small} + {large}"
    assert {row["nodes"] for row in answer["choices"] if row["model"] == small} == {1, 2}
    fitting = [row for row in answer["choices"] if row["fits"]]
    assert {row["model"] for row in fitting} == {small, large, both}
    assert {row["price_region"] for row in fitting} == {"us-east-1"}
    assert json.loads((tmp_path / "select.json").read_text()) == answer
    assert {"select.png", "select_2.png", "select_3_dark.png", "select.html"} <= {
        item.name for item in tmp_path.iterdir()
    }


def test_compare_writes_its_pictures(tmp_path: Path) -> None:
    words = ["compare", "kv-cache-dtype=auto", "kv-cache-dtype=fp8", *SMALL, "--output-dir", str(tmp_path)]
    assert main([*words, "--output", str(tmp_path / "text")]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"compare.csv", "compare.md", "compare.html", "compare.png", "compare_difference_dark.png"} <= names
    assert "compare_difference.png" in (tmp_path / "compare.md").read_text()


def test_ranges() -> None:
    assert axis_of("max-model-len=4K:32K:*2", "--x").values == (4096, 8192, 16384, 32768)
    assert axis_of("--max-num-seqs=8:32:8", "--x").values == (8, 16, 24, 32)
    assert axis_of("gpu-memory-utilization=0.8:0.9:0.05", "--x").values == (0.8, 0.85, 0.9)
    assert axis_of("kv-cache-dtype=auto,fp8", "--x").values == ("auto", "fp8")
    assert axis_of("enforce-eager=true,false", "--x").flag == "--enforce-eager"


@pytest.mark.parametrize(
    "text",
    [
        "nothing=1,2",
        "max-model-len",
        "max-model-len=",
        "max-model-len=a",
        "max-num-seqs=1:2",
        "max-num-seqs=9:2:1",
        "max-num-seqs=1:9:*1",
        "max-num-seqs=1:9999:1",
        "enforce-eager=maybe",
        "max-num-seqs=1,,2",
    ],
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(InputError):
        axis_of(text, "--x")


def test_compare_against_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "kv-cache-dtype=auto", "kv-cache-dtype=fp8", *SMALL, "--format", "csv"]) == 0
    rows = {(row["plan"], row["term"]): row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    one, two = (rows[plan, "bytes_per_token"] for plan in ("kv-cache-dtype=auto", "kv-cache-dtype=fp8"))
    assert int(one["value"]) == 2 * int(two["value"])
    assert int(two["difference"]) == int(two["value"]) - int(one["value"])
    assert one["difference"] == ""


def test_compare_as_text_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]
    shared = ["--gpus", "l20:1", "--offline", "--max-model-len", "4096"]
    assert main(["compare", *words, *shared]) == 0
    assert "weights_memory, GiB" in capsys.readouterr().out
    assert main(["compare", *words, *shared, "--format", "markdown"]) == 0
    assert "| plan | model |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["report", *SMALL, "--output-dir", "out", "--breakdown-by", "head"],
        ["report", "--output-dir", "out"],
        ["report", "plan.json", *SMALL, "--output-dir", "out"],
        ["report", *SMALL, "--output-dir", "out", "--concurrency", "0"],
        ["sweep", *SMALL, "--x", "max-num-seqs=1,2", "--y", "max-num-seqs=1,2", "--output-dir", "out"],
        ["sweep", *SMALL, "--x", "max-model-len=1k,2k", "--y", "max-num-seqs=1,2", "--output-dir", "out"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct"],
        ["select", *SMALL],
        ["compare", "one"],
        ["compare", "a", "a"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--max-model-len", "4k", "--price", "l20"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--max-model-len", "4k", "--rank-by", "colour"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--max-model-len", "4k", "--vendor", "intel"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--max-model-len", "4k", "--max-usd-to-buy", "9"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct,", "--max-model-len", "4k"],
        ["select", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--max-model-len", "4k", "--nodes", "65"],
    ],
)
def test_wrong_usage_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_select_over_the_whole_catalog_as_a_process(vplan, tmp_path: Path) -> None:
    """Shared work keeps 44 cards x 16 counts near the cost of a few estimates, however busy the machine is."""
    model = ["--model", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "--max-model-len", "16384"]
    began = _cpu_seconds()
    vplan("estimate", *model, "--gpus", "l20:8", "--tensor-parallel-size", "8")
    estimated = _cpu_seconds()
    path = tmp_path / "select.csv"
    result = vplan("select", *model, "--concurrency", "32", "--format", "csv", "--output", str(path))
    elapsed = _cpu_seconds() - estimated
    assert result.returncode == 0, result.stderr
    rows = _rows(tmp_path / "select.csv")
    fits = {(row["gpu"], int(row["gpus_per_node"])) for row in rows if row["fits"] == "True"}
    assert ("L20", 8) in fits
    assert ("T4", 8) not in fits
    refused = {row["gpu"]: row["reason"] for row in rows if row["fits"] == "False" and row["gpus_per_node"] == "16"}
    assert "compute" in refused["V100-SXM2-32GB"] or "capability" in refused["V100-SXM2-32GB"]
    assert len({row["gpu"] for row in rows}) * 16 == len(rows)
    assert elapsed < 8 * (estimated - began)


def _cpu_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def test_estimate_pays_nothing_for_reports() -> None:
    heavy = ("pandas", "matplotlib", "numpy", "rich", "yaml")
    code = f"import sys, planner.cli.main; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
