"""What a command imports before it answers, and that the short ways to an answer are no other ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import TypeAdapter, ValidationError
from typer.main import get_command

from planner.cli.application import application
from planner.cli.plain import _NOT_PLAIN, _taken

ROOT = Path(__file__).resolve().parents[2]
CATALOGED = "Qwen/Qwen2.5-VL-72B-Instruct-AWQ"
SMALL = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rope_theta": 1000000.0,
    "hidden_act": "silu",
}  # fmt: skip

HEAVY = ("pandas", "matplotlib", "torch", "vllm", "transformers", "huggingface_hub", "pydantic", "typer._adapters")
OTHER_COMMANDS = (
    "planner.serve.parse", "planner.releases.flags_v0_26_0", "planner.releases.flags_v0_33_0", "planner.observed",
    "planner.cli.verify", "planner.cli.doctor", "planner.verify", "planner.doctor", "planner.monitor", "planner.load",
)  # fmt: skip
TEXT = ("rich", "planner.report.text", "planner.report.fit_text", "planner.report.tables")
SEARCH = ("numpy", "planner.search.search", "planner.report.fit")
NOT_IMPORTED = [
    ("estimate", "json", HEAVY + OTHER_COMMANDS + TEXT + SEARCH),
    ("estimate", "text", HEAVY + OTHER_COMMANDS + SEARCH),
    ("fit", "json", HEAVY + OTHER_COMMANDS + TEXT),
    ("fit", "text", HEAVY + OTHER_COMMANDS),
]


def modules_after(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_CONFIG_HOME": "/dev/null/none"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("cataloged", [False, True], ids=["folder", "catalog"])
@pytest.mark.parametrize(("command", "form", "banned"), NOT_IMPORTED)
def test_a_command_imports_only_what_its_answer_needs(tmp_path, command, form, banned, cataloged):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    model, gpus = (CATALOGED, "l20:8") if cataloged else (str(tmp_path), "l4:1")
    flags = ["--tensor-parallel-size", "8"] if cataloged else []
    argv = [command, "--model", model, "--gpus", gpus, *flags, "--offline", "--format", form, "--output", "/dev/null"]
    found = modules_after(f"from planner.cli.main import main; assert main({argv!r}) == 0")
    assert found.isdisjoint(banned), sorted(found.intersection(banned))


def test_yaml_waits_for_a_catalog():
    """Importing a command reads no catalog, so it needs no YAML; nor do the commands need each other."""
    found = modules_after("from planner.cli.application import application; application(['estimate'])")
    assert found.isdisjoint({"yaml", "pydantic", "planner.cli.fit", "planner.report"})


NUMBERS = [
    "0", "1", "007", "8192", "0.9", "0.90", "30.0", ".5", "5.", "1e3", "-1", "+1", " 2", "1_000", "1,5", "nan", "inf",
    "", "0x10", "٣", "999999999999999999999", "true", "1.5.2", "1.",
]  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("option", ["--safety-margin", "--max-plans"])
def test_a_number_taken_as_it_is_is_the_one_typer_would_read(option, text):
    """Whatever is not plainly digits is left to typer, with its own reading and message."""
    parameters = get_command(application(["fit"])).commands["fit"].params
    parameter = next(one for one in parameters if option in one.opts)
    taken = _taken(parameter, text)
    try:
        expected = TypeAdapter(parameter.type_descriptor.annotation).validate_python(text)
    except ValidationError:
        assert taken is _NOT_PLAIN
    else:
        assert taken is _NOT_PLAIN or (taken == expected and type(taken) is type(expected))


def test_parameters_of_another_typer_are_left_to_it():
    assert _taken(SimpleNamespace(required=False, multiple=False, nargs=1), "text") is _NOT_PLAIN


def test_values_that_are_not_plain_reach_typer(vplan):
    base = ("fit", "--model", CATALOGED, "--gpus", "l20:8")
    refused = vplan(*base, "--max-plans", "many")
    assert refused.returncode == 2
    assert "Invalid value for '--max-plans'" in refused.stderr
    assert vplan(*base, "--max-plans", "1e1").returncode == 2
    assert vplan("sweep", *base[1:]).stderr == "vplan: Missing option '--x'.\n"
    assert vplan("estimate", "--help").stdout.startswith("Usage: vplan estimate")
    repeated = vplan("estimate", *base[1:], "--env", "A=1", "--env", "bad")
    assert repeated.stderr == "vplan: --env: write NAME=VALUE, not 'bad'\n"


def test_the_ways_in_compile_the_package(tmp_path):
    """./vplan and ./check write bytecode where Python would not, and only for sources newer than the last time."""
    source = tmp_path / "planner" / "part.py"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    source.parent.mkdir()
    source.write_text("VALUE = 1\n")
    shutil.copy(ROOT / "scripts" / "environment.sh", tmp_path)

    def compiled_at() -> int:
        script = f"set -eu; here='{tmp_path}'; . '{tmp_path}/environment.sh'; make_bytecode '{tmp_path}/venv'"
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        [compiled] = (source.parent / "__pycache__").glob("part.*.pyc")
        return compiled.stat().st_mtime_ns

    first = compiled_at()
    assert compiled_at() == first
    source.write_text("VALUE = 2\n")
    os.utime(source, (later := source.stat().st_mtime + 10, later))
    assert compiled_at() > first
