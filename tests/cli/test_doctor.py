"""`vplan doctor` end to end: a failing command and its log in, a command that `vplan estimate` says starts out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from planner.cli.main import main

CONFIGS = Path(__file__).resolve().parent.parent / "data" / "configs"
VL_7B = str(CONFIGS / "Qwen__Qwen2.5-VL-7B-Instruct")
VL_72B_AWQ = str(CONFIGS / "Qwen2.5-VL-72B-Instruct-AWQ-padded")


@pytest.fixture
def answered(capsys, monkeypatch):
    """One command line in this process: exit code and the JSON it prints."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null/none")

    def run(*arguments):
        code = main([*arguments, "--format", "json"])
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, json.loads(printed.out)

    return run


@pytest.fixture
def examined(answered, tmp_path):
    """The doctor's answer to a log."""

    def run(log, *options):
        file = tmp_path / "vllm.log"
        file.write_text(log)
        return answered("doctor", str(file), *options)

    return run


@pytest.mark.parametrize(
    ("command", "gpus", "log", "failure", "within"),
    [
        pytest.param(
            f"vllm serve {VL_72B_AWQ} --dtype float16 --tensor-parallel-size 8 --gpu-memory-utilization 0.9 "
            f"--max-model-len 20000 --enforce-eager",
            "l20:8",
            "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, "
            "you must use the 'spawn' start method",
            "cuda_fork",
            "VLLM_WORKER_MULTIPROC_METHOD=spawn",
            id="fork",
        ),
        pytest.param(
            f"xinference launch --model-engine vLLM --model-path {VL_7B} --n-gpu 2 --max_model_len 8192",
            "l20:2",
            "(VllmWorkerProcess pid=4) ERROR 02-22 03:00:31 multiproc_worker_utils.py:242] RuntimeError: Cannot "
            "re-initialize CUDA in forked subprocess.",
            "cuda_fork",
            "VLLM_WORKER_MULTIPROC_METHOD=spawn xinference launch",
            id="fork in xinference",
        ),
        pytest.param(
            f"vllm serve {VL_7B} -tp 2 --max-model-len 4096 --max-num-seqs 16 --limit-mm-per-prompt "
            f"image=5,video=5 --swap-space 8",
            "a10:2",
            "vllm serve: error: argument --limit-mm-per-prompt: Value image=5,video=5 cannot be converted to "
            "<function loads at 0x7f4b777cfc70>.",
            "limit_mm_syntax",
            """--limit-mm-per-prompt '{"image": 5, "video": 5}'""",
            id="image=5",
        ),
        pytest.param(
            f"vllm serve {VL_7B} -tp 4 --quantization awq --dtype float16 --max-model-len 8192",
            "t4:4",
            "ValueError: Cannot find the config file for awq",
            "quantization_missing",
            "--dtype float16",
            id="awq flag",
        ),
        pytest.param(
            f"vllm serve {VL_72B_AWQ} -tp 8 --dtype float16 --kv-cache-dtype fp8 --gpu-memory-utilization 0.75 "
            f"--max-model-len 2048",
            "t4:8",
            "ValueError: FP8 KV cache is not supported by the Triton attention backend on Tesla T4 (compute "
            "capability 7.5); native FP8 (fp8e4nv) requires SM89+.",
            "kv_fp8_capability",
            "-tp 8",
            id="fp8 cache on t4",
        ),
        pytest.param(
            f"vllm serve {VL_7B} --max-model-len 16384 --max-num-seqs 1024 --gpu-memory-utilization 0.95",
            "l4:1",
            "INFO 04-05 01:12:55 [gpu_model_runner.py:1] Starting profile run for multi-modal models.\n"
            "ERROR 04-05 01:12:55 [core.py:390] torch.OutOfMemoryError: CUDA out of memory.",
            "oom_profiling_encoder",
            "max_pixels",
            id="out of memory after an upgrade",
        ),
    ],
)
def test_a_scenario_is_cured(examined, answered, command, gpus, log, failure, within):
    code, _ = answered("estimate", "--gpus", gpus, "--command", command, "--offline")
    assert code == (0 if failure == "cuda_fork" else 1), "memory is not what fails in a fork; it is refused otherwise"
    code, answer = examined(f"$ {command}\n{log}\n", "--gpus", gpus)
    assert code == 0
    assert answer["status"] == "recognised"
    assert answer["failure"]["id"] == failure
    corrected = answer["corrected"]["command"]
    assert within in corrected
    assert corrected != command
    assert answer["corrected"]["verdict"] == "starts", answer["corrected"]
    code, again = answered("estimate", "--gpus", gpus, "--command", corrected, "--offline")
    assert code == 0
    assert again["verdict"] == "starts"


def test_an_upgrade_out_of_memory_leaves_room_for_the_encoder(examined):
    log = (
        f"vllm serve {VL_7B} --max-model-len 16384 --max-num-seqs 1024 --gpu-memory-utilization 0.95\n"
        "Starting profile run for multi-modal models.\ntorch.OutOfMemoryError: CUDA out of memory.\n"
    )
    _, answer = examined(log, "--gpus", "l4:1")
    gpu = answer["corrected"]["after"]["per_gpu"]
    assert gpu["used_after_startup_bytes"] + gpu["vision_encoder_runtime_peak_bytes"] <= gpu["total_memory_bytes"]
    assert "--max-num-seqs 256" in answer["corrected"]["command"]


def test_the_card_and_the_arguments_come_from_the_log(examined):
    log = (
        f"INFO 10-23 19:55:16 llm_engine.py:237] Initializing an LLM engine (v0.6.3) with config: model='{VL_7B}', "
        "dtype=torch.bfloat16, max_seq_len=4096, tensor_parallel_size=4, quantization=None, enforce_eager=False\n"
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 "
        "GPU has compute "
        "capability 7.5. You can use float16 instead by explicitly setting the`dtype` flag in CLI, for example: "
        "--dtype=half.\n"
    )
    code, answer = examined(log)
    assert code == 0
    assert answer["vllm_version_of_log"] == "0.6.3"
    assert answer["card"] == "Tesla T4"
    assert answer["corrected"]["verdict"] == "starts"
    words = shlex.split(answer["corrected"]["command"])
    assert words[words.index("--dtype") + 1] == "half"


def test_the_right_rejection_is_told_where_nothing_helps(examined):
    log = (
        f"vllm serve {VL_72B_AWQ} --kv-cache-dtype fp8\n"
        "FP8 KV cache is not supported by the Triton attention backend on Tesla T4 (compute capability 7.5)\n"
    )
    code, answer = examined(log, "--gpus", "t4:1")
    assert code == 0
    assert answer["corrected"]["verdict"] == "rejected"
    assert answer["corrected"]["after"]["rejection"]["bottleneck"] == "weights"


def test_text_names_cause_figures_and_command(vplan, tmp_path):
    file = tmp_path / "log"
    file.write_text(
        "vllm serve M\nValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU "
        "memory utilization "
        "(0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.\n"
    )
    done = vplan("doctor", str(file))
    assert done.returncode == 0
    assert "13.57 GiB are missing" in done.stdout
    assert "vllm serve M --gpu-memory-utilization 0.66" in done.stdout
    assert "not checked" in done.stdout


def test_who_holds_the_card_is_named(examined, monkeypatch):
    """NVML of this machine, where the log says that other processes were in the way."""
    from types import SimpleNamespace

    from planner.errors import OutsideError
    from planner.sources import gpu_survey
    from planner.sources.gpu_survey import GpuProcess, GpuSurvey

    log = (
        "ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory utilization "
        "(0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.\n"
    )
    card = GpuSurvey(
        index=0, name="L20", uuid="u", compute_capability=(8, 9), nvml_total_bytes=48 << 30, used_bytes=17 << 30,
        usable_bytes=47 << 30, usable_evidence="derived", catalog_name=None,
        processes=(GpuProcess(pid=4711, name="python3", used_bytes=15 << 30),),
    )  # fmt: skip
    others = [
        card.model_copy(update={"index": 1, "processes": ()}),
        card.model_copy(update={"index": 2, "used_bytes": 1, "processes": ()}),
    ]
    monkeypatch.setattr(gpu_survey, "survey", lambda catalog: SimpleNamespace(gpus=(card, *others)))
    assert examined(log)[1]["on_this_machine"] == [
        "GPU 0: process 4711 (python3), 15.00 GiB",
        "GPU 1: 17.00 GiB in use by processes that are not shown here",
    ]
    assert examined("[Errno 98] Address already in use\n")[1]["on_this_machine"] == []

    def no_driver(catalog):
        raise OutsideError("no driver")

    monkeypatch.setattr(gpu_survey, "survey", no_driver)
    assert examined(log)[1]["on_this_machine"] == []


def test_a_healthy_log_is_healthy(vplan):
    done = vplan("doctor", "tests/data/logs/v2_eager.log", "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "healthy"


def test_an_unknown_text_says_what_was_looked_for(examined):
    code, answer = examined("Traceback (most recent call last):\nKeyError: 'port'\n")
    assert code == 1
    assert answer["status"] == "unknown"
    assert len(answer["looked_for"]) >= 25
    assert answer["corrected"] is None


@pytest.mark.parametrize("content", [b"", b"  \n", None])
def test_nothing_to_read_is_one_line(vplan, tmp_path, content):
    file = tmp_path / "log"
    if content is not None:
        file.write_bytes(content)
    done = vplan("doctor", str(file))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_broken_bytes_and_a_packed_log_are_read(vplan, tmp_path):
    import gzip

    file = tmp_path / "log.gz"
    file.write_bytes(gzip.compress(b"\xff\xfe [Errno 98] Address already in use\r\n"))
    done = vplan("doctor", str(file), "--format", "json")
    assert json.loads(done.stdout)["failure"]["id"] == "port_taken"
