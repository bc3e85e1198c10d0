"""`vplan fit` with a workload in the user's terms: what it says, and what it refuses in one line."""

from __future__ import annotations

import json
import shlex

import pytest

SMALL = ("--model", "Qwen/Qwen2.5-0.5B-Instruct", "--gpus", "l4:1", "--offline", "--kv-cache-dtype", "auto")
LENGTHS = ("--prompt-tokens", "p50=800,p95=6000", "--output-tokens", "200")


def answer(vplan, *flags: str, code: int = 0):
    done = vplan("fit", *SMALL, *flags, "--format", "json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt-tokens", "2000"), "give both"),
        (("--prompt-tokens", "p50=9,p95=3", "--output-tokens", "5"), "p95 (3) must not be below p50 (9)"),
        (("--prompt-tokens", "p90=9", "--output-tokens", "5"), "write N or p50=N,p95=N"),
        (("--prompt-tokens", "0", "--output-tokens", "5"), "must be from 1 to"),
        (("--request-rate", "3"), "--request-rate needs lengths"),
        (("--shared-prefix-tokens", "300"), "--shared-prefix-tokens needs lengths"),
        ((*LENGTHS, "--request-rate", "3", "--concurrency", "8"), "state the same thing twice"),
        ((*LENGTHS, "--request-rate", "-1"), "--request-rate must be above 0"),
        ((*LENGTHS, "--percentile", "100"), "--percentile must be from 50 to 99.9"),
        ((*LENGTHS, "--requests", "x.csv"), "--requests brings its own lengths"),
        (("--requests", "nowhere.csv"), "nowhere.csv: No such file"),
        (("--vary", "colour"), "--vary: choose from"),
        (("--gpus", "l4:1x2", "--nodes", "2"), "--nodes goes with --gpus NAME:COUNT"),
        (("--nodes", "0"), "--nodes must be from 1"),
    ],
)
def test_wrong_use_is_one_line(vplan, flags, message):
    done = vplan("fit", *SMALL, *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column of prompt tokens"),
        ("prompt_tokens,other\n1,2\n", "no column of output tokens"),
        ("prompt_tokens,output_tokens\n", "no requests in it"),
        ("prompt_tokens,output_tokens\n10,5\nmany,5\n", "line 3: prompt_tokens must be a whole number"),
        ("prompt_tokens,output_tokens\n10,1e99\n", "line 2: output_tokens must be a whole number"),
        ('{"prompt_tokens": 10, "output_tokens": 5}\n[1]\n', "line 2: expected a JSON object"),
        ('{"prompt_tokens": 10}\n', "line 1: no output_tokens"),
        ('{"prompt_tokens": true, "output_tokens": 1}\n', "line 1: prompt_tokens must be a whole number"),
    ],
)
def test_a_file_that_cannot_be_read_names_its_line(vplan, tmp_path, text, message):
    path = tmp_path / "requests.csv"
    path.write_text(text)
    done = vplan("fit", *SMALL, "--requests", str(path))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert str(path) in done.stderr


def test_a_workload_of_two_quantiles(vplan):
    found = answer(vplan, *LENGTHS, "--concurrency", "32", "--shared-prefix-tokens", "300")
    for plan in found["plans"]:
        demand = plan["demand"]
        assert demand["concurrency"] == 32
        assert demand["held"] >= 32
        assert demand["needed_kv_tokens"] > demand["mean_kv_tokens"]
        assert demand["shared_prefix_tokens"] == 288
        assert plan["estimate"]["engine"]["max_model_len"] >= demand["longest_request_tokens"]
    assert any("mean times count" in note for note in found["notes"])


def test_files_of_both_kinds_say_the_same(vplan, tmp_path):
    pairs = [(100 * step, 10 * step) for step in range(1, 30)]
    table, lines = tmp_path / "requests.csv", tmp_path / "requests.jsonl"
    table.write_text("ContextTokens,GeneratedTokens\n" + "".join(f"{one},{other}\n" for one, other in pairs))
    lines.write_text(
        "".join(json.dumps({"usage": {"prompt_tokens": a, "completion_tokens": b}}) + "\n" for a, b in pairs)
    )
    plans = [answer(vplan, "--requests", str(path), "--concurrency", "20")["plans"] for path in (table, lines)]
    assert plans[0][0]["demand"] == plans[1][0]["demand"]
    assert plans[0][0]["demand"]["longest_request_tokens"] == 3190


def test_a_rate_gives_an_interval(vplan):
    plan = answer(vplan, *LENGTHS, "--request-rate", "2")["plans"][0]
    low, high = plan["demand"]["concurrency_interval"]
    assert low <= high == plan["demand"]["concurrency"]
    assert answer(vplan, *LENGTHS, "--request-rate", "100000", code=1)["plans"] == []


def test_the_whole_analysis(vplan):
    found = answer(vplan, "--pareto", "--sensitivity", "--variants", "--max-model-len", "8192")
    assert {"pareto", "recommended", "sensitivity", "variants"} <= set(found)
    assert {item["objective"] for item in found["recommended"]} >= {"context", "concurrency", "throughput", "headroom"}
    for point in found["pareto"]:
        argv = shlex.split(point["command"])
        assert argv[:2] == ["vllm", "serve"]
        assert argv[2] == (point["model"] or "Qwen/Qwen2.5-0.5B-Instruct")
    assert {item["scheme"] for item in found["variants"]} == {"awq", "gptq-int4"}
    assert any(change["flag"] == "--enforce-eager" for change in found["sensitivity"])
    assert "pareto" not in answer(vplan, "--max-model-len", "8192")


def test_nothing_fits_and_what_would(vplan):
    found = answer(vplan, "--concurrency", "100000", "--max-model-len", "8192", code=1)
    assert found["plans"] == []
    harms = [miss["harm"] for miss in found["near_misses"]]
    assert "fewer requests at once" in harms
    done = vplan("fit", *SMALL, "--concurrency", "100000", "--max-model-len", "8192")
    assert "What would make it fit, the least harmful first:" in done.stdout


def test_machines(vplan):
    one = answer(vplan, "--nodes", "2", "--max-model-len", "8192")
    two = answer(vplan, "--gpus", "l4:1x2", "--max-model-len", "8192")
    assert one["plans"][0]["argv"] == two["plans"][0]["argv"]
    assert one["plans"][0]["estimate"]["gpus"] == "l4:1x2"
    assert one["plans"][0]["objective"]["gpus"] == 2


def test_a_checkpoint_knows_its_family(vplan):
    found = answer(vplan, "--model", "Qwen/Qwen2.5-0.5B-Instruct-AWQ", "--variants", "--max-model-len", "8192")
    assert {item["model"] for item in found["variants"]} == {
        "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4",
    }  # fmt: skip
