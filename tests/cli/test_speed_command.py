"""`vplan speed`: a labelled estimate with intervals and prices."""

import json

import pytest

FLAGS = ("--model", "Qwen/Qwen2.5-7B-Instruct", "--offline", "--max-model-len", "8192")


def test_json_has_intervals_and_dollars(vplan):
    done = vplan("speed", *FLAGS, "--gpus", "l20:1", "--concurrency", "1,16", "--usd-per-hour", "2", "--format", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["estimated"]) == ("vplan.speed/1", True)
    assert [load["concurrency"] for load in answer["loads"]] == [1, 16]
    for load in answer["loads"]:
        dollars, rate = load["usd_per_million_output_tokens"], load["output_tokens_per_s"]
        assert dollars["expected"] == pytest.approx(2 / 3600 / rate["expected"] * 1e6, rel=1e-2)
        for span in (dollars, rate, load["ttft_s"], load["itl_s"]):
            assert span["low"] <= span["expected"] <= span["high"]


def test_text_says_that_it_is_an_estimate(vplan):
    done = vplan("speed", "--gpus", "a100-80g:2", "--command", "vllm serve Qwen/Qwen2.5-7B-Instruct -tp 2", "--offline")
    assert done.returncode == 0, done.stderr
    assert "An estimate" in done.stdout
    assert "USD an hour" in done.stdout


def test_a_plan_that_does_not_start_has_no_speed(vplan):
    done = vplan("speed", *FLAGS, "--gpus", "l20:1", "--gpu-memory-utilization", "0.2")
    assert done.returncode == 1
    assert "rejected" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--gpus", "l20:1", "--prompt-tokens", "0"), 2, "--prompt-tokens"),
        (("--gpus", "l20:1", "--prompt-tokens", "9000"), 2, "--max-model-len"),
        (("--gpus", "l20:1", "--usd-per-hour", "-1"), 2, "--usd-per-hour"),
        (("--gpus", "l20:1", "--format", "csv"), 2, "--format"),
        ((), 2, "--gpus"),
        (("--gpus", "p40:1", "--dtype", "float16"), 3, ""),
    ],
)
def test_wrong_usage_is_one_line(vplan, arguments, code, words):
    done = vplan("speed", *FLAGS, *arguments)
    assert done.returncode == code, done.stdout
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
