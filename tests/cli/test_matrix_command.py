"""`vplan matrix`: many models on many cards, in every form, and wrong use in one line."""

from __future__ import annotations

import csv
import io
import json

import pytest

MODELS = "Qwen/Qwen2.5-7B-Instruct,Qwen/Qwen2.5-VL-72B-Instruct-AWQ,tiiuae/Falcon-Perception"
ASKED = ("--only", "t4,l20,h200", "--concurrency", "4", "--max-model-len", "8192", "--offline", "--jobs", "1")


def _rows(vplan, *flags: str) -> list[dict]:
    done = vplan("matrix", *flags, *ASKED, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_the_fewest_cards_are_those_of_select(vplan):
    fewest = {row["gpu"]: row["fewest_gpus"] for row in _rows(vplan, "--model", MODELS.split(",")[1])}
    asked = ("--only", "t4,l20,h200", "--concurrency", "4", "--max-model-len", "8192", "--offline")
    done = vplan("select", "--model", MODELS.split(",")[1], *asked, "--format", "json")
    held: dict[str, int | None] = dict.fromkeys(fewest)
    for row in json.loads(done.stdout)["choices"]:
        if row["fits"]:
            held[row["gpu"]] = min(row["gpus_per_node"], held[row["gpu"]] or 99)
    assert fewest == held


def test_each_form_says_the_same(vplan):
    rows = _rows(vplan, "--model", MODELS)
    assert [(row["model"], row["gpu"]) for row in rows[:3]] == [
        (MODELS.split(",")[0], gpu) for gpu in ("T4", "L20", "H200-SXM")
    ]
    assert rows[-1]["gpu"] == ""
    assert "FalconPerception" in rows[-1]["refusal"]
    table = vplan("matrix", "--model", MODELS, *ASKED, "--format", "csv").stdout
    read = list(csv.DictReader(io.StringIO(table)))
    assert [(row["model"], row["gpu"], row["fewest_gpus"]) for row in read] == [
        (row["model"], row["gpu"], str(row["fewest_gpus"] or "")) for row in rows
    ]
    markdown = vplan("matrix", "--model", MODELS, *ASKED, "--format", "markdown").stdout
    counts = [str(row["fewest_gpus"] or "none") for row in rows[:3]]
    assert f"| {MODELS.split(',')[0]} | {' | '.join(counts)} |" in markdown
    text = vplan("matrix", "--model", MODELS, *ASKED).stdout
    assert "refused: " in text
    assert f"  {rows[2]['fewest_gpus']:>4}  " in text


def test_models_of_the_catalog_by_their_ids(vplan):
    rows = _rows(vplan, "--match", "QWEN/qwen2.5-?b-instruct")
    assert {row["model"] for row in rows} == {"Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct"}


def test_nothing_that_fits_ends_in_one(vplan):
    done = vplan("matrix", "--model", "deepseek-ai/DeepSeek-V3", "--only", "t4", "--max-model-len", "8192", "--offline")
    assert done.returncode == 1
    assert "none  T4" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "a", "--match", "b"), "give one of them"),
        (("--match", "nobody/*"), "no model of the catalog"),
        (("--model", "a", "--gpus", "t4:1"), "--only"),
        (("--model", "a", "--jobs", "0"), "--jobs must be from 1"),
        (("--model", "a", "--max-gpus-per-node", "17"), "--max-gpus-per-node must be from 1 to 16"),
        (("--model", "a", "--safety-margin", "1"), "--safety-margin"),
        (("--model", "a", "--format", "xml"), "--format"),
        (("--model", "a", "--max-model-len", "auto"), "--max-model-len"),
    ],
)
def test_wrong_use_is_one_line(vplan, flags, message):
    length = () if "--max-model-len" in flags else ("--max-model-len", "8192")
    done = vplan("matrix", *flags, *length, "--offline")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_length_is_needed(vplan):
    assert "--max-model-len is missing" in vplan("matrix", "--model", "a", "--offline").stderr
