"""`vplan verify` from start to end: what it says of each way an engine can go, and that it leaves nothing running."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest


def answer(done):
    assert done.stdout.startswith("{"), done.stderr
    return json.loads(done.stdout)


def terms(document):
    return {row["term"]: row for row in document["terms"]}


def test_success_is_compared_term_by_term(fake):
    done = fake.run("serve", "v2_eager.log", "--format", "json")
    document = answer(done)
    assert document["status"] == "started"
    found = terms(document)
    assert found["available_kv_cache_bytes"]["measured"] == 129588510720
    assert found["num_gpu_blocks"]["measured"] == 988681
    assert found["capacity_tokens"]["measured"] == 15818896
    assert document["conclusion"] == "agrees", document["reasons"]
    assert done.returncode == 0
    assert document["engine_says"]["model_runner"] == "V2"


def test_requests_have_the_planned_shapes(fake):
    done = fake.run("serve", "v2_eager.log", "--format", "json")
    assert [item["error"] for item in answer(done)["requests"]] == [None, None, None]
    sent = [json.loads(line) for line in fake.sent.read_text().splitlines()]
    assert [(item["prompts"], item["longest"]) for item in sent] == [(1, 16), (1, 8192 - 9), (256, 16)]


def test_progress_goes_to_stderr_and_the_log_is_kept(fake, tmp_path):
    log = tmp_path / "kept.log"
    done = fake.run("serve", "v2_eager.log", "--log", str(log), "--no-requests")
    assert "model loaded" in done.stderr
    assert "ready after" in done.stderr
    assert "Available KV cache memory" in log.read_text()
    assert "available kv cache" in done.stdout
    assert not fake.sent.exists()


def test_v1_is_read_too(fake):
    document = answer(fake.run("serve", "v1_eager.log", "--format", "json", "--env", "VLLM_USE_V2_MODEL_RUNNER=0"))
    found = terms(document)
    assert document["status"] == "started"
    assert found["peak_activation_bytes"]["measured"] == pytest.approx(1.12 * 2**30, rel=0.01)


def test_cache_too_small_is_told_in_vllms_words(fake):
    done = fake.run("fail", "kv_too_small.log", "--format", "json")
    document = answer(done)
    assert done.returncode == 1
    assert (document["status"], document["conclusion"]) == ("refused", "did not start")
    assert document["failure"]["bottleneck"] == "kv_cache"
    assert document["failure"]["message"].startswith(
        "To serve at least one request with the model's max seq len (131072)"
    )


def test_refusal_that_was_predicted(fake):
    done = fake.run("fail", "kv_too_small.log", "--format", "json", "--kv-cache-memory-bytes", "32MiB")
    assert answer(done)["conclusion"] == "refused as predicted"
    assert done.returncode == 1


def test_out_of_memory_while_loading(fake):
    document = answer(fake.run("fail", "oom_while_loading.log", "--format", "json"))
    assert document["failure"]["bottleneck"] == "weights"


def test_hang_ends_at_the_timeout(fake):
    done = fake.run("hang", "v2_eager.log", "--timeout", "3", "--format", "json")
    document = answer(done)
    assert done.returncode == 4
    assert document["status"] == "timeout"
    assert "not ready in time" in document["failure"]["message"]


def test_crash_midway(fake):
    done = fake.run("crash", "crash.log", "--format", "json")
    document = answer(done)
    assert done.returncode == 4
    assert document["status"] == "crashed"
    assert "signal 9" in document["failure"]["message"]
    assert terms(document)["weights_memory_bytes"]["measured"] == pytest.approx(3.79 * 2**30, abs=1)


def test_death_under_load_is_no_agreement(fake):
    done = fake.run("dies-on-request", "v2_eager.log", "--format", "json")
    assert done.returncode == 4
    assert answer(done)["status"] == "crashed"


def test_garbage_names_the_missing_line(fake):
    done = fake.run("garbage", "port_taken.log")
    assert done.returncode == 4
    last = done.stderr.strip().splitlines()[-1]
    assert "no line for weights_memory_bytes" in last
    assert "Model loading took" in last


def test_taken_port_is_not_mistaken_for_the_engine(fake):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = f"vllm serve MODEL --port {port} --enforce-eager --max-model-len 8192"
        done = fake.run("serve", "v2_eager.log", "--command", command)
    assert done.returncode == 4
    assert f"port {port} is taken" in done.stderr


def test_port_taken_at_the_last_moment(fake):
    document = answer(fake.run("fail", "port_taken.log", "--format", "json"))
    assert document["failure"]["bottleneck"] == "port"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["serve", "hang"])
def test_interrupted_leaves_nothing(fake, mode, number):
    process = fake.start(mode, "v2_eager.log" if mode == "hang" else "crash.log", "--timeout", "60")
    fake.wait_for_worker()
    process.send_signal(number)
    if mode == "hang":
        time.sleep(1)
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


def test_no_executable_is_one_line(fake):
    done = fake.run("serve", "v2_eager.log", "--vllm", "/nonexistent/vllm")
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1
