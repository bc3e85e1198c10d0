"""The doctor on texts that people reported, on healthy logs, and on texts that are none of its business."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from planner.doctor.log import read_log
from planner.doctor.recognise import diagnose
from planner.doctor.table import FAILURES

DATA = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True)
class Case:
    name: str
    label: str
    source: str
    text: str


def reported() -> list[Case]:
    cases = []
    for path in sorted((DATA / "doctor").glob("*.txt")):
        head, _, text = path.read_text(encoding="utf-8").partition("\n\n")
        fields = dict(line.removeprefix("# ").split(": ", 1) for line in head.splitlines())
        cases.append(Case(path.stem, fields["failure"], fields["source"], text))
    return cases


def held_out() -> list[Case]:
    entries = json.loads((DATA / "doctor" / "held_out.json").read_text(encoding="utf-8"))
    return [
        Case(f"held_out {index}", item["label"], item["source"], item["text"]) for index, item in enumerate(entries)
    ]


def recorded() -> list[Case]:
    labels = dict.fromkeys(("v2_eager", "v1_eager", "v1_compiled", "tp2_eager"), "healthy") | {
        "kv_too_small": "kv_too_small",
        "oom_while_loading": "oom_loading",
        "oom_warming_up": "oom_sampler_warmup",
        "startup_memory": "startup_memory",
        "port_taken": "port_taken",
        "crash": "engine_died",
    }
    logs = DATA / "logs"
    return [Case(name, label, "recorded", (logs / f"{name}.log").read_text()) for name, label in labels.items()]


def answer(text: str) -> str:
    diagnosis = diagnose(read_log(text))
    return diagnosis.findings[0].failure.id if diagnosis.findings else diagnosis.status


@pytest.mark.parametrize("case", reported(), ids=lambda case: case.name)
def test_a_reported_failure_is_named(case: Case) -> None:
    assert answer(case.text) == case.label


def test_at_least_25_failures_have_a_real_log() -> None:
    real = {case.label for case in reported() if case.source.startswith("https://github.com/")}
    assert len(real) >= 25
    assert {case.label for case in reported()} == {item.id for item in FAILURES} - {"oom_unplaced"}


def test_precision_and_recall_on_texts_that_no_pattern_was_made_for() -> None:
    """Of the failures named, how many are right; of the failures there are, how many are named."""
    cases = [*held_out(), *recorded()]
    answers = [(case.label, answer(case.text)) for case in cases]
    none = {"unknown", "healthy"}
    named = [pair for pair in answers if pair[1] not in none]
    there = [pair for pair in answers if pair[0] not in none]
    precision = sum(label == said for label, said in named) / len(named)
    recall = sum(label == said for label, said in there) / len(there)
    wrong = [pair for pair in answers if pair[0] != pair[1]]
    assert precision >= 0.97, wrong
    assert recall >= 0.97, wrong
    assert Counter(said for label, said in answers if label in none) == Counter(
        label for label, _ in answers if label in none
    )


@pytest.mark.parametrize(
    "prefix",
    [
        "(EngineCore_DP0 pid=77) ERROR 06-05 06:18:13 [core.py:470] ",
        "(VllmWorkerProcess pid=9) ERROR 02-22 03:00:31 multiproc_worker_utils.py:242] ",
        "vllm-1  | ",
        "2025-07-01T13:41:27.123456789Z stderr F ",
        "[rank3]: ",
        "\x1b[1;36m(VllmWorker rank=1 pid=5)\x1b[0;0m ERROR 06-05 06:18:13 [core.py:470] ",
        "> ",
    ],
)
def test_a_failure_is_named_behind_any_prefix(prefix: str) -> None:
    text = (
        "AssertionError: Error in memory profiling. Initial free memory 82.94 GiB,\n"
        "current free memory 90.17 GiB. This happens when other processes"
    )
    assert answer("\n".join(prefix + line for line in text.splitlines())) == "profiling_disturbed"


def test_the_cause_stands_before_what_follows_from_it() -> None:
    text = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of "
        "44.53 GiB of "
        "which 1.00 MiB is free.\n"
        '  File "vllm/worker.py", line 1, in load_model\n'
        "[rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, "
        "OpType=ALLREDUCE, X=1) ran for "
        "600009 milliseconds before timing out.\n"
        "RuntimeError: Engine core initialization failed. See root cause above."
    )
    found = [finding.failure.id for finding in diagnose(read_log(text)).findings]
    assert found[0] == "oom_loading"
    assert found[-1] == "engine_died"


def test_out_of_memory_is_placed_by_the_last_stage_not_by_old_lines() -> None:
    started = "INFO Capturing cudagraphs for decoding.\nINFO Graph capturing finished in 9 secs\nINFO: "
    "Application startup complete.\n"
    failed = 'File "runner.py", line 1, in execute_model\ntorch.OutOfMemoryError: CUDA out of memory.'
    assert answer(started + failed) == "oom_serving"
    assert answer(started.split("INFO Graph")[0] + failed) == "oom_graph_capture"


def test_a_traceback_that_the_start_came_after_is_no_failure() -> None:
    survived = "WARNING 11-22 06:04:49 [m.py:1] NotImplementedError: SM90 GDN prefill DSL kernel is unavailable\n"
    started = "INFO 11-22 06:05:05 [core.py:347] init engine (profile, create kv cache, warmup model) took 16.84 s\n"
    assert answer(survived + started) == "healthy"
    assert answer(started + survived) == "unknown"


def test_every_entry_of_the_table_can_be_told() -> None:
    ids = [item.id for item in FAILURES]
    assert len(ids) == len(set(ids))
    for item in FAILURES:
        assert item.cause.endswith((".", "!")), item.id
        assert item.cure, item.id
        assert any(step.text for step in item.cure), item.id


@pytest.mark.parametrize(
    "text", ["\x00\x01" * 1000, "{" * 5000, "Namespace(" * 2000, "non-default args: {" + "[" * 3000]
)
def test_garbage_is_unknown(text: str) -> None:
    assert answer(text) == "unknown"
