"""`vplan launch` and `--launch-form`: a plan, ready to save."""

import json
import shlex

import yaml

MODEL = ("--model", "Qwen/Qwen2.5-7B-Instruct", "--offline")


def test_a_fit_becomes_a_manifest(vplan, tmp_path):
    fit = tmp_path / "fit.json"
    vplan("fit", *MODEL, "--gpus", "l20:2", "--format", "json", "--output", str(fit))
    plans = json.loads(fit.read_text())["plans"]
    for rank in (1, 2):
        done = vplan("launch", "--plan", str(fit), "--rank", str(rank), "--form", "compose", "--offline")
        assert done.returncode == 0, done.stderr
        (service,) = yaml.safe_load(done.stdout)["services"].values()
        assert service["command"] == plans[rank - 1]["argv"][1:]
    assert vplan("launch", "--plan", str(fit), "--rank", "99").returncode == 2


def test_an_estimate_keeps_its_dtype_and_block_size(vplan, tmp_path):
    file = tmp_path / "estimate.json"
    flags = ("--gpus", "l20:1", "--max-model-len", "8192", "--dtype", "float16", "--block-size", "32")
    vplan("estimate", *MODEL, *flags, "--format", "json", "--output", str(file))
    words = shlex.split(vplan("launch", "--plan", str(file), "--offline").stdout)
    assert words[words.index("--dtype") + 1] == "float16"
    assert words[words.index("--block-size") + 1] == "32"


def test_only_the_form_is_printed_and_only_of_a_plan_that_starts(vplan):
    flags = (*MODEL, "--gpus", "l20:1", "--max-model-len", "8192")
    done = vplan("launch", *flags)
    assert shlex.split(done.stdout)[:3] == ["vllm", "serve", "Qwen/Qwen2.5-7B-Instruct"]
    refused = vplan("launch", *flags, "--gpu-memory-utilization", "0.2", "--form", "kubernetes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "kv_cache" in refused.stderr or "weights" in refused.stderr
    pasted = vplan("launch", "--gpus", "l20:1", "--command", done.stdout.strip(), "--form", "python", "--offline")
    assert "max_model_len=8192" in pasted.stdout
    compile(pasted.stdout, "launch.py", "exec")


def test_wrong_forms_are_one_line(vplan):
    for form, code in (("systemd", 2), ("ray", 3)):
        done = vplan("launch", *MODEL, "--gpus", "l20:1", "--form", form)
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == 1
    assert vplan("estimate", *MODEL, "--gpus", "l20:1", "--launch-form", "docker", "--format", "json").returncode == 2


def test_fit_and_estimate_end_in_the_form(vplan):
    for command in ("fit", "estimate"):
        done = vplan(command, *MODEL, "--gpus", "l20:1", "--launch-form", "kubernetes")
        assert done.returncode == 0, done.stderr
        manifest = done.stdout[done.stdout.index("apiVersion: apps/v1") :]
        assert [item["kind"] for item in yaml.safe_load_all(manifest)] == ["Deployment", "Service"]


def test_two_machines_take_the_form_for_several(vplan):
    flags = ("--gpus", "l20:1x2", "--pipeline-parallel-size", "2", "--max-model-len", "8192")
    assert vplan("launch", *MODEL, *flags).returncode == 3
    done = vplan("launch", *MODEL, *flags, "--form", "multinode")
    assert done.stdout.count("--nnodes 2") == 2
    assert done.stdout.count("--headless") == 1
