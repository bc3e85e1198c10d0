"""The command line as people and programs meet it: formats, exit codes, one-line errors, quoting."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import pytest

SMALL = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rope_theta": 1000000.0,
    "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with the config of Qwen2.5-0.5B."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


def one_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def test_estimate_json_is_the_contract(vplan, small):
    done = vplan("estimate", "--model", str(small), "--gpus", "h200:1", "--format", "json", "--offline")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == "vplan.estimate/1"
    assert answer["verdict"] == "starts"
    assert answer["rejection"] is None
    assert answer["per_gpu"]["parameter_bytes"] == 988_065_536
    cache = answer["kv_cache"]
    assert cache["bytes_per_block"] == 24 * 16 * 2 * (64 + 64) * 2
    assert cache["groups"] == [
        {
            "kind": "full_attention",
            "num_layers": 24,
            "num_kv_heads": 2,
            "head_size": 64,
            "block_size": 16,
            "page_size_bytes": 8192,
        }
    ]


def test_the_device_lines_add_up(vplan, small):
    answer = json.loads(vplan("estimate", "--model", str(small), "--gpus", "l4:1", "--format", "json").stdout)
    gpu = answer["per_gpu"]
    parts = (
        "cuda_context",
        "non_torch",
        "weights_memory",
        "runner_state",
        "kv_cache_allocated",
        "cuda_graph_actual",
        "allocator_retained",
    )
    assert sum(gpu[f"{part}_bytes"] for part in parts) == gpu["used_after_startup_bytes"]
    engine = ("weights_memory", "peak_activation", "non_torch", "cuda_graph_estimate")
    assert (
        gpu["requested_memory_bytes"] - sum(gpu[f"{part}_bytes"] for part in engine) == gpu["available_kv_cache_bytes"]
    )


def test_formats(vplan, small):
    base = ("estimate", "--model", str(small), "--gpus", "l4:1")
    text = vplan(*base).stdout
    assert "used after startup" in text
    assert "vllm serve" in text
    rows = list(csv.DictReader(io.StringIO(vplan(*base, "--format", "csv").stdout)))
    assert len(rows) == 1
    assert rows[0]["verdict"] == "starts"
    assert vplan(*base, "--format", "markdown").stdout.startswith("# ")
    assert vplan(*base, "--format", "xml").returncode == 2


def test_output_file(vplan, small, tmp_path):
    target = tmp_path / "out.json"
    done = vplan("estimate", "--model", str(small), "--gpus", "l4:1", "--format", "json", "--output", str(target))
    assert done.returncode == 0
    assert done.stdout == ""
    assert json.loads(target.read_text())["verdict"] == "starts"
    assert (
        vplan("estimate", "--model", str(small), "--gpus", "l4:1", "--output", str(tmp_path / "no" / "x")).returncode
        == 4
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpus", "l4:1"], 2, "--model"),
        (["--model", "/nonexistent/model", "--gpus", "l4:1"], 2, "no such file"),
        (["--model", "SMALL", "--gpus", "l200:8"], 2, "did you mean l20"),
        (["--model", "SMALL", "--gpus", "l20:0"], 2, "GPU count"),
        (["--model", "SMALL", "--gpus", "l20:1000000000"], 2, "GPU count"),
        (["--model", "SMALL", "--gpus", "l20:-1"], 2, "--gpus"),
        (["--model", "SMALL", "--gpus", "l4:1", "--max-model-len", "many"], 2, "--max-model-len"),
        (["--model", "SMALL", "--gpus", "l4:1", "--gpu-memory-utilization", "1.5"], 2, "utilization"),
        (["--model", "SMALL", "--gpus", "l4:1", "--env", "=1"], 2, "--env"),
        (["--model", "SMALL", "--gpus", "l4:1", "--hf-overrides", "{"], 2, "--hf-overrides"),
        (["--model", "SMALL", "--gpus", "l4:1", "--vllm-version", "0.2.0"], 2, "0.2.0"),
        (["--model", "SMALL", "--gpus", "mi300x:1"], 3, ""),
        (["--model", "no-such-org/no-such-model", "--gpus", "l4:1", "--offline"], 2, "--offline"),
        (["--unknown-flag"], 2, "--unknown-flag"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(vplan, small, arguments, code, words):
    done = vplan("estimate", *(str(small) if item == "SMALL" else item for item in arguments))
    assert done.returncode == code, done.stderr
    assert words in one_line(done.stderr)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", 2),
        (b"{", 2),
        (b"[1, 2]", 2),
        (b'{"architectures": ["Qwen2ForCausalLM"], "architectures": []}', 2),
        (b"\xff\xfe{}", 2),
        (b"[" * 100_000, 2),
        (b'{"architectures": []}', 2),
        (b'{"architectures": "Qwen2ForCausalLM"}', 2),
        (b'{"architectures": ["MadeUpForCausalLM"]}', 3),
        (json.dumps({**SMALL, "hidden_size": -896}).encode(), 2),
        (json.dumps({**SMALL, "num_hidden_layers": 10**18}).encode(), 2),
        (json.dumps({**SMALL, "vocab_size": "many"}).encode(), 2),
        (json.dumps({**SMALL, "rope_scaling": {"rope_type": "made-up"}}).encode(), 3),
        (json.dumps({**SMALL, "quantization_config": {"quant_method": "made-up"}}).encode(), 1),
    ],
)
def test_bad_configs_are_one_line(vplan, tmp_path, content, code):
    (tmp_path / "config.json").write_bytes(content)
    done = vplan("estimate", "--model", str(tmp_path), "--gpus", "l4:1")
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    if code != 1:
        one_line(done.stderr)


def test_a_huge_config_is_refused_unread(vplan, tmp_path):
    with (tmp_path / "config.json").open("w") as file:
        file.write('{"architectures": ["Qwen2ForCausalLM"], "padding": "' + "x" * (50 << 20) + '"}')
    done = vplan("estimate", "--model", str(tmp_path), "--gpus", "l4:1")
    assert done.returncode == 2
    one_line(done.stderr)


@pytest.mark.parametrize(
    "name", ["with space", "quo'te", "$(touch pwned)", "`id`", "-leading", "naïve✓", 'dou"ble', "a;b", "new\nline"]
)
def test_hostile_folder_names_stay_one_argument(vplan, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    done = vplan("fit", f"--model={name}", "--gpus", "l4:1", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plans"][0]
    words = shlex.split(plan["command"])
    assert words == [*(f"{key}={value}" for key, value in plan["env"].items()), *plan["argv"]]
    assert plan["argv"][:2] == ["vllm", "serve"]
    assert not plan["argv"][2].startswith("-")
    assert Path(tmp_path, plan["argv"][2]).resolve() == folder.resolve()
    assert not (tmp_path / "pwned").exists()


def test_a_rejection_is_an_answer(vplan, small):
    done = vplan("estimate", "--model", str(small), "--gpus", "l4:8", "--tensor-parallel-size", "8", "--format", "json")
    assert done.returncode == 1
    rejection = json.loads(done.stdout)["rejection"]
    assert rejection["bottleneck"] == "heads_divisibility"
    assert rejection["message"] == "Total number of attention heads (14) must be divisible by tensor parallel size (8)."


def test_explain_redoes_the_arithmetic(vplan, small):
    done = vplan("explain", "--model", str(small), "--gpus", "l4:1", "--format", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    figures = {figure["name"]: figure for figure in answer["figures"]}
    assert sum(part["bytes"] for part in figures["parameter_bytes"]["parts"]) == figures["parameter_bytes"]["value"]
    for name in ("weights_memory_bytes", "peak_activation_bytes", "used_after_startup_bytes"):
        assert sum(part["bytes"] for part in figures[name]["parts"]) == figures[name]["value"], name
    gpu = answer["estimate"]["per_gpu"]
    for name, figure in figures.items():
        if name in gpu:
            assert figure["value"] == gpu[name], name
        assert figure["source"]


def test_every_command_has_help_with_an_example(vplan):
    listing = vplan("--help").stdout
    for command in ("fit", "estimate", "explain"):
        assert command in listing
        assert "Example:" in vplan(command, "--help").stdout


def test_catalog_lists(vplan):
    gpus = vplan("catalog", "gpus", "list").stdout
    assert "L20" in gpus
    models = vplan("catalog", "models", "list").stdout
    assert "Qwen/Qwen2.5-VL-72B-Instruct-AWQ" in models
    assert len(models.splitlines()) > 120
    assert "29696" in vplan("catalog", "models", "show", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ").stdout
    assert "total_memory_bytes" in vplan("catalog", "gpus", "show", "l20").stdout
    assert vplan("catalog", "gpus", "show", "l200").returncode == 2
