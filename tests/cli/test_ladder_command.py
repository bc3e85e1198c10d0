"""`vplan fit --from-command`: a failing launch in, one that starts out, in the user's own words."""

import json
import shlex

import pytest

FAILING = [
    ("vllm serve Qwen/Qwen2.5-VL-7B-Instruct --served-model-name 'it''s mine' --port 9000", "a10:1"),
    ("vllm serve Qwen/Qwen2.5-VL-7B-Instruct --limit-mm-per-prompt image=5,video=5", "a10:2"),
    ("docker run --gpus all -e X=1 vllm/vllm-openai:v0.26.0 --model Qwen/Qwen2.5-72B-Instruct -tp 2", "l20:4"),
    ("vllm serve Qwen/Qwen2.5-VL-72B-Instruct-AWQ -tp 8 --kv-cache-dtype fp8 --gpu-memory-utilization=0.75", "t4:8"),
    ("VLLM_USE_V2_MODEL_RUNNER=0 vllm serve Qwen/Qwen2.5-7B-Instruct --max_model_len 32k", "t4:2"),
]


def ladder(vplan, command, gpus, *more):
    done = vplan("fit", "--from-command", command, "--gpus", gpus, "--format", "json", "--offline", *more)
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == "vplan.ladder/1"
    assert answer["starts"] == (done.returncode == 0)
    return answer


@pytest.mark.parametrize(("command", "gpus"), FAILING)
def test_the_printed_command_starts(vplan, command, gpus):
    answer = ladder(vplan, command, gpus)
    assert answer["starts"]
    assert answer["before"]["verdict"] == "rejected" or answer["steps"]
    done = vplan(
        "estimate", "--command", answer["command"], "--gpus", answer["gpus"], "--format", "json", "--offline"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["per_gpu"] == answer["after"]["per_gpu"]
    words = [f"{name}={value}" for name, value in answer["env"].items()] + answer["argv"]
    assert shlex.split(answer["command"]) == words


def test_what_has_nothing_to_do_with_memory_stays(vplan):
    answer = ladder(vplan, *FAILING[0])
    assert answer["argv"][:3] == ["vllm", "serve", "Qwen/Qwen2.5-VL-7B-Instruct"]
    assert answer["argv"][3:7] == ["--served-model-name", "its mine", "--port", "9000"]


def test_old_syntax_and_refused_values_are_corrected_first(vplan):
    old = ladder(vplan, *FAILING[1])
    assert old["corrections"][0]["change"] == '--limit-mm-per-prompt \'{"image": 5, "video": 5}\''
    fp8 = ladder(vplan, *FAILING[3])
    assert "FP8 KV cache is not supported" in fp8["corrections"][0]["refusal"]


def test_flags_beside_the_command_go_over_it(vplan):
    answer = ladder(
        vplan, "vllm serve Qwen/Qwen2.5-7B-Instruct", "l4:1", "--max-model-len", "16384", "--concurrency", "12"
    )
    assert answer["after"]["kv_cache"]["max_concurrency"] >= 12
    assert "--max-model-len" in answer["argv"]


def test_text(vplan):
    done = vplan("fit", "--from-command", FAILING[0][0], "--gpus", "a10:1", "--offline")
    assert done.returncode == 0
    assert "The fullest GPU lacks" in done.stdout
    assert "\nvllm serve Qwen/Qwen2.5-VL-7B-Instruct" in done.stdout
    fine = vplan("fit", "--from-command", "vllm serve Qwen/Qwen2.5-7B-Instruct", "--gpus", "l20:1", "--offline")
    assert "starts as it is" in fine.stdout


def test_what_no_ladder_helps(vplan):
    huge = ladder(vplan, "vllm serve meta-llama/Llama-3.1-405B-Instruct", "t4:1")
    assert (huge["starts"], huge["after"]) == (False, None)
    assert huge["steps"]
    heads = ladder(vplan, "vllm serve Qwen/Qwen2.5-7B-Instruct -tp 8", "l20:8")
    assert heads["lacking_bytes"] is None or heads["starts"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from-command", "ls -l", "--gpus", "l4:1"], "no vLLM launch"),
        (["--from-command", "vllm serve m", "--gpus", "l4:1", "--format", "csv"], "text or json"),
        (["--from-command", "vllm serve m", "--gpus", "l4:1", "--launch-form", "docker"], "--launch-form"),
        (["--gpus", "l4:1"], "--model is missing"),
        (["--model", "Qwen/Qwen2.5-7B-Instruct"], "--gpus is missing"),
    ],
)
def test_wrong_usage_is_one_line(vplan, arguments, words):
    done = vplan("fit", *arguments, "--offline")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
