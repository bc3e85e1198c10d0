"""`vplan calibrate`: flags from the log, the excess kept and never a discount."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.hardware.spec import Calibration
from planner.sources.calibration import read_calibration
from planner.verify.calibration import command_in, merged, write_calibration

DATA = Path(__file__).resolve().parents[1] / "data"
FLAGS = ("--model", str(DATA / "measured_models" / "q25-7b-l4"), "--gpus", "h200:1", "--offline")
ARGS = (
    "INFO 11-22 05:56:18 [api_utils.py:273] non-default args: {'model_tag': 'm', 'max_model_len': 8192, "
    "'max_num_seqs': 256, 'max_num_batched_tokens': 8192, 'gpu_memory_utilization': 0.9, 'enforce_eager': True}\n"
)


def _entry(add_bytes, cache_short_bytes):
    return Calibration(
        gpu="L20", vllm_version="0.26.0", model="m", add_bytes=add_bytes, cache_short_bytes=cache_short_bytes
    )


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "vllm.log"
    path.write_text(ARGS + (DATA / "logs" / "v2_eager.log").read_text())
    return path


def test_log_that_agrees_adds_nothing(vplan, log, tmp_path):
    saved = tmp_path / "deep" / "calibration.json"
    done = vplan("calibrate", str(log), *FLAGS, "--save", str(saved))
    assert done.returncode == 0, done.stderr
    assert "agrees" in done.stdout
    (entry,) = json.loads(saved.read_text())["entries"]
    assert (entry["gpu"], entry["vllm_version"], entry["add_bytes"], entry["logs"]) == ("H200-SXM", "0.26.0", {}, 1)
    vplan("calibrate", str(log), *FLAGS, "--save", str(saved))
    assert json.loads(saved.read_text())["entries"][0]["logs"] == 2


def test_excess_is_kept_beyond_the_rounding(vplan, log, tmp_path):
    saved = tmp_path / "calibration.json"
    log.write_text(log.read_text().replace("0.22 GiB for non-torch memory", "0.72 GiB for non-torch memory"))
    assert vplan("calibrate", str(log), *FLAGS, "--save", str(saved)).returncode == 0
    (entry,) = read_calibration(saved)
    assert entry.add_bytes["non_torch_bytes"] == pytest.approx((0.715 - 0.2246) * 2**30, rel=0.01)


def test_dry_run_writes_nothing(vplan, log, tmp_path):
    saved = tmp_path / "calibration.json"
    assert vplan("calibrate", str(log), *FLAGS, "--save", str(saved), "--dry-run").returncode == 0
    assert not saved.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing\n", "which vLLM wrote it"),
        (ARGS + "Initializing a V1 LLM engine (v0.26.0) with config: model='m'\n", "no line for weights_memory_bytes"),
        ((DATA / "logs" / "kv_too_small.log").read_text() + ARGS, "did not start"),
        ((DATA / "logs" / "v2_eager.log").read_text(), "does not tell its flags"),
    ],
)
def test_logs_that_cannot_be_used_are_one_line(vplan, tmp_path, text, said):
    path = tmp_path / "vllm.log"
    path.write_text(text)
    done = vplan("calibrate", str(path), *FLAGS, "--save", str(tmp_path / "c.json"))
    assert done.returncode in (2, 4)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "c.json").exists()


def test_command_is_rebuilt_from_the_log():
    line = (
        "non-default args: {'model_tag': 'm', 'port': 8001, 'enable_prefix_caching': False, "
        "'limit_mm_per_prompt': {'image': 2}}"
    )
    assert command_in([line]) == [
        "vllm", "serve", "m", "--port", "8001", "--no-enable-prefix-caching", "--limit-mm-per-prompt", '{"image": 2}',
    ]  # fmt: skip
    assert command_in(["nothing"]) is None
    with pytest.raises(InputError):
        command_in(["non-default args: {'a': <object>}"])


def test_merging_never_lowers():
    old = _entry({"non_torch_bytes": 5, "cuda_graph_actual_bytes": 1}, 9)
    new = _entry({"non_torch_bytes": 3, "cuda_graph_actual_bytes": 4}, 2)
    (both,) = merged([old], [new])
    assert both.add_bytes == {"non_torch_bytes": 5, "cuda_graph_actual_bytes": 4}
    assert (both.cache_short_bytes, both.logs) == (9, 2)


NEGATIVE = (
    '{"schema": "vplan.calibration/1", "entries": [{"gpu": "a", "vllm_version": "b", "model": "c", '
    '"add_bytes": {"non_torch_bytes": -1}, "cache_short_bytes": 0, "logs": 1}]}'
)


@pytest.mark.parametrize(
    "text", ["[]", '{"schema": "other"}', '{"schema": "vplan.calibration/1", "entries": [{}]}', "{", NEGATIVE]
)
def test_file_that_is_no_calibration(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read_calibration(path)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "c.json"
    assert read_calibration(path) == ()
    write_calibration(path, [_entry({"non_torch_bytes": 7}, 0)])
    assert read_calibration(path) == (_entry({"non_torch_bytes": 7}, 0),)


def test_estimates_use_and_name_it(vplan, log, tmp_path):
    saved = tmp_path / "calibration.json"
    log.write_text(log.read_text().replace("0.22 GiB for non-torch memory", "0.72 GiB for non-torch memory"))
    assert vplan("calibrate", str(log), *FLAGS, "--save", str(saved)).returncode == 0
    (entry,) = read_calibration(saved)
    flags = ("estimate", *FLAGS, "--max-model-len", "8192", "--enforce-eager", "--format", "json")
    plain = json.loads(vplan(*flags, "--calibration", "none").stdout)
    shifted = json.loads(vplan(*flags, "--calibration", str(saved)).stdout)
    more = entry.shifts()["non_torch_bytes"]
    assert more > 2**28
    assert shifted["per_gpu"]["non_torch_bytes"] == plain["per_gpu"]["non_torch_bytes"] + more
    cache = [document["per_gpu"]["available_kv_cache_bytes"] for document in (plain, shifted)]
    assert cache[0] - cache[1] == more
    assert any("calibrated by 1 log" in warning for warning in shifted["warnings"])
    assert not any("calibrated" in warning for warning in plain["warnings"])


def test_the_users_own_file_is_read_by_default(vplan, log, tmp_path):
    mine = {"XDG_CONFIG_HOME": str(tmp_path)}
    log.write_text(log.read_text().replace("0.22 GiB for non-torch memory", "0.72 GiB for non-torch memory"))
    assert vplan("calibrate", str(log), *FLAGS, env=mine).returncode == 0
    assert (tmp_path / "vplan" / "calibration.json").is_file()
    assert "calibrated by 1 log" in vplan("estimate", *FLAGS, "--enforce-eager", env=mine).stdout
    fitted = json.loads(vplan("fit", *FLAGS, "--enforce-eager", "--format", "json", env=mine).stdout)
    assert any("calibrated by 1 log" in warning for warning in fitted["plans"][0]["estimate"]["warnings"])


def test_another_card_release_or_model_is_left_alone(vplan, log, tmp_path):
    saved = tmp_path / "calibration.json"
    log.write_text(log.read_text().replace("0.22 GiB for non-torch memory", "0.72 GiB for non-torch memory"))
    vplan("calibrate", str(log), *FLAGS, "--save", str(saved))
    for other in (
        (*FLAGS, "--vllm-version", "0.33.0"),
        (*FLAGS[:3], "l20:1", *FLAGS[4:]),
        ("--model", str(DATA / "measured_models" / "q25-7b-l8"), *FLAGS[2:]),
    ):
        assert "calibrated" not in vplan("estimate", *other, "--calibration", str(saved)).stdout
    missing = vplan("estimate", *FLAGS, "--calibration", str(tmp_path / "none.json"))
    assert missing.returncode == 2
    assert "no such file" in missing.stderr
