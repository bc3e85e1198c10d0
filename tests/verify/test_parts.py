"""The parts that need no engine: byte budgets, ballast, stand-in files, metrics, verdicts, plans."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import api
from planner.cli.launched import plain_argv, request_from_plan
from planner.errors import InputError, OutsideError, UnsupportedError
from planner.model.spec import ModelFiles
from planner.units import GIB
from planner.verify.ballast import fill
from planner.verify.compare import compare
from planner.verify.emulate import Ballast, utilization_for, with_option
from planner.verify.outcome import Outcome
from planner.verify.process import Supervised
from planner.verify.readings import Failure, Figure
from planner.verify.requests import RequestResult, cache_config, png
from planner.verify.standin import dummy_folder, tokenizer_document
from planner.verify.static import ask_installed_parser

MODEL = Path(__file__).resolve().parents[1] / "data" / "measured_models" / "q25-7b-l4"


@given(total=st.integers(10 * GIB, 300 * GIB), share=st.floats(0.01, 1.0))
def test_budget_is_met_to_the_byte(total, share):
    """vLLM requests ceil(total * utilization)."""
    requested = math.ceil(total * share)
    assert math.ceil(total * utilization_for(requested, total)) == requested


def test_a_card_cannot_stand_in_for_a_larger_one():
    with pytest.raises(InputError):
        utilization_for(2 * GIB, GIB)


def test_option_is_replaced_not_doubled():
    argv = ["vllm", "serve", "M", "--gpu-memory-utilization", "0.9", "--seed=1"]
    assert with_option(argv, "--gpu-memory-utilization", "0.3") == [
        "vllm",
        "serve",
        "M",
        "--seed=1",
        "--gpu-memory-utilization",
        "0.3",
    ]
    assert with_option(argv, "--seed", "2")[-3:] == ["0.9", "--seed", "2"]


class FakeDriver:
    """A device of 40 GiB whose first 600 MiB are gone."""

    def __init__(self) -> None:
        self.free = 40 * GIB - (600 << 20)

    def memory(self) -> tuple[int, int]:
        return self.free, 40 * GIB

    def take(self, size_bytes: int) -> bool:
        if size_bytes > self.free:
            return False
        self.free -= size_bytes
        return True


def test_ballast_leaves_what_it_was_told_to():
    driver = FakeDriver()
    before = driver.free
    held = fill(driver, 22 * GIB + 12345)
    assert driver.free == before - held
    assert 22 * GIB + 12345 <= driver.free < 22 * GIB + 12345 + (2 << 20)


def test_ballast_without_a_driver_is_one_line():
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(OutsideError), Ballast(GIB, 1, {}):
        pass


def test_stand_in_tokenizer_keeps_ids_apart():
    document = tokenizer_document(152064, {151645: "<|end|>", 151652: "<|vision_start|>", 151655: "<|image_pad|>"})
    vocab = document["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(151645))
    added = {token["id"]: token["content"] for token in document["added_tokens"]}
    assert added[151655] == "<|image_pad|>"
    assert sorted(added) == list(range(151645, 151656))
    assert not set(added.values()) & set(vocab)
    with pytest.raises(UnsupportedError):
        tokenizer_document(400, {200: "<|end|>"})


def test_dummy_folder_of_a_vision_model(tmp_path):
    files = ModelFiles(
        name="m", config={
            "model_type": "qwen2_5_vl", "vocab_size": 152064, "eos_token_id": 151645, "image_token_id": 151655,
            "vision_config": {"patch_size": 14},
        },
    )  # fmt: skip
    assert dummy_folder(files, tmp_path) == ("tokenizer", "processor")
    assert json.loads((tmp_path / "config.json").read_text())["image_token_id"] == 151655
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["max_pixels"] == 12845056
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"


@pytest.mark.parametrize(
    ("model_type", "image", "end"),
    [("qwen2_5_vl", 151655, 151645), ("qwen3_vl", 151655, 151645), ("qwen3_5", 248056, 248046)],
)
def test_tokenizer_has_the_image_token_that_the_config_leaves_out(tmp_path, model_type, image, end):
    config = {"model_type": model_type, "vocab_size": 248320, "eos_token_id": end, "vision_config": {"patch_size": 14}}
    dummy_folder(ModelFiles(name="m", config=config), tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    assert {entry["content"]: entry["id"] for entry in added}["<|image_pad|>"] == image


def test_dummy_folder_keeps_the_models_own_files(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer.json").write_text("{}")
    files = ModelFiles(name="m", path=str(source), config={"model_type": "qwen2", "vocab_size": 1000})
    assert dummy_folder(files, target) == ()
    assert (target / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"vocab_size": 1000, "quantization_config": {"quant_method": "gptq"}}, "dummy weights"),
        ({"vocab_size": 1000, "model_type": "llava", "vision_config": {}}, "stand-in processor"),
        ({"vocab_size": 100}, "stand-in tokenizer"),
    ],
)
def test_dummy_folder_refuses_what_it_cannot_stand_in_for(tmp_path, config, part):
    with pytest.raises(UnsupportedError) as found:
        dummy_folder(ModelFiles(name="m", config=config), tmp_path)
    assert found.value.part == part


def test_metrics():
    text = '# HELP x\nvllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="27"} 1.0\nother 2\n'
    assert cache_config(text)["num_gpu_blocks"] == "27"
    with pytest.raises(OutsideError):
        cache_config("vllm:cache_config_info_total 3\n")


def test_png_is_an_image():
    data = png(64, 32)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[16:24] == (64).to_bytes(4, "big") + (32).to_bytes(4, "big")


def estimate(**flags):
    args = api.EngineArgs(
        max_model_len=8192, max_num_seqs=256, max_num_batched_tokens=8192, enforce_eager=True, **flags
    )
    given = ("enforce_eager", "max_model_len", "max_num_batched_tokens", "max_num_seqs", *flags)
    return api.estimate(api.Request(model=str(MODEL), gpus="h200:1", offline=True, given=given, args=args)).estimate


def test_verdicts():
    fits, refused = estimate(gpu_memory_utilization=0.9), estimate(kv_cache_memory_bytes=32 << 20)
    available = fits.per_gpu.available_kv_cache_bytes
    cache = "available_kv_cache_bytes"

    def started(bytes_: float, *requests: RequestResult) -> Outcome:
        return Outcome("started", figures={cache: Figure(bytes_)}, requests=requests)

    failed = Outcome("refused", Failure("kv_cache", "To serve"))
    assert compare(fits, started(available)).conclusion == "agrees"
    assert compare(fits, started(available - 0.14 * GIB)).conclusion == "agrees"
    assert compare(fits, started(available - 0.16 * GIB)).conclusion == "differs"
    assert compare(fits, started(available + 0.39 * GIB)).conclusion == "agrees"
    assert compare(fits, started(available + 0.41 * GIB)).conclusion == "differs"
    assert compare(fits, started(available, RequestResult("long", "x", "status 500"))).conclusion == "differs"
    assert compare(fits, failed).conclusion == "did not start"
    assert compare(refused, failed).conclusion == "refused as predicted"
    assert compare(refused, Outcome("refused", Failure("weights", "x"))).conclusion == "refused otherwise"
    assert compare(refused, Outcome("crashed", Failure("crash", "x"))).conclusion == "did not start"
    assert compare(refused, started(1.0)).conclusion == "started though refused"


def test_plan_files(tmp_path, vplan):
    file = tmp_path / "plan.json"
    done = vplan(
        "fit", "--model", str(MODEL), "--gpus", "l20:1", "--format", "json", "--offline", "--output", str(file)
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(file.read_text())["plans"][0]
    request = request_from_plan(file, 1, api.Request(model="", gpus=""))
    assert request.gpus == "l20:1"
    assert request.args.max_model_len == plan["estimate"]["engine"]["max_model_len"]
    with pytest.raises(InputError, match="none of rank 99"):
        request_from_plan(file, 99, api.Request(model="", gpus=""))
    file.write_text("[]")
    with pytest.raises(InputError, match="expected vplan"):
        request_from_plan(file, 1, api.Request(model="", gpus=""))


def test_plain_argv_has_only_what_was_given():
    args = api.EngineArgs(max_model_len=100, enforce_eager=True, enable_prefix_caching=False)
    request = api.Request(
        model="m", gpus="", given=("enable_prefix_caching", "enforce_eager", "max_model_len"), args=args
    )
    assert plain_argv(request) == [
        "vllm",
        "serve",
        "m",
        "--no-enable-prefix-caching",
        "--enforce-eager",
        "--max-model-len",
        "100",
    ]


def test_python_without_vllm_is_not_asked():
    assert ask_installed_parser(sys.executable, ["vllm", "serve", "m"], {}) is None
    with pytest.raises(OutsideError):
        ask_installed_parser("/nonexistent/python", ["vllm", "serve", "m"], {})


def test_static_check_names_the_replacement(vplan):
    done = vplan("verify", "--static", "--command", "vllm serve m --swap-space 4", "--python", sys.executable)
    assert done.returncode == 1
    assert "unrecognized arguments: --swap-space 4" in done.stdout
    assert "--kv-offloading-size" in done.stdout
    assert vplan("verify", "--static", "--command", "vllm serve m", "--python", sys.executable).returncode == 0


def test_supervised_ends_descendants_that_left_the_group(tmp_path):
    script = (
        "import subprocess, sys, time\nwait = 'import time; time.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', wait], start_new_session=True)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    with Supervised([sys.executable, "-c", script], {}, tmp_path / "log", tmp_path) as run:
        while "up" not in run.new_lines():
            pass
        assert len(run.alive()) == 2
    assert run.alive() == []


@pytest.mark.parametrize("name", ["engine_probe.py", "ballast.py", "static_probe.py"])
def test_probes_stand_alone(name):
    """They run under another Python, 3.10 or later, which has no such package as this."""
    text = (Path(__file__).resolve().parents[2] / "planner" / "verify" / name).read_text()
    assert "planner" not in text
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import ast,sys; ast.parse(sys.stdin.read(), feature_version=(3, 10))"],
        input=text,
        text=True,
        check=False,
    )
    assert done.returncode == 0
