"""Model folders, headers and catalogs from strangers: read as data, within limits; nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.sources.hardware_catalog import load_hardware_catalog
from planner.sources.model_catalog import load_model_catalog
from planner.sources.model_folder import load_folder
from planner.sources.safetensors_headers import read_header, summarize_folder
from tests.conftest import ROOT

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_attention_heads": 14, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 1024,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
    "auto_map": {"AutoConfig": "configuration_trap.TrapConfig", "AutoModelForCausalLM": "modeling_trap.Trap"},
}  # fmt: skip
TRAP = "import pathlib\npathlib.Path({canary!r}).write_text('ran')\n"


class _Bomb:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"echo ran >{self.canary}",)


@pytest.fixture
def trapped(tmp_path: Path) -> tuple[Path, Path]:
    """A folder in which everything that some loader would run or unpickle writes a canary."""
    folder, canary = tmp_path / "model", tmp_path / "canary"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("configuration_trap", "modeling_trap", "conftest", "sitecustomize", "usercustomize", "__init__",
                 "msgspec", "yaml", "json", "typer", "planner", "setup", "processing_trap", "vllm"):  # fmt: skip
        (folder / f"{name}.py").write_text(TRAP.format(canary=str(canary)))
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin", "model.pt", "preprocessor.joblib"):
        (folder / name).write_bytes(pickle.dumps(_Bomb(str(canary))))
    with zipfile.ZipFile(folder / "pytorch_model-00001.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Bomb(str(canary))))
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (folder / "trap.pth").write_text(f"import os; os.system('echo ran >{canary}')\n")
    (folder / "vplan").write_text(f"#!/bin/sh\necho ran >{canary}\n")
    (folder / "vplan").chmod(0o700)
    return folder, canary


@pytest.mark.parametrize("extra", [(), ("--trust-remote-code",)], ids=["plain", "trusting"])
@pytest.mark.parametrize("command", ["estimate", "fit", "explain"])
def test_nothing_of_a_model_folder_runs(trapped, command, extra):
    """Also not from inside the folder, and not with --trust-remote-code, which is a flag for vLLM."""
    folder, canary = trapped
    before = sorted(folder.iterdir())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [command, "--model", str(folder), "--gpus", "l20:1", *extra, "--offline"]
    code = "import sys; sys.path.pop(0); sys.path.insert(0, sys.argv.pop(1)); from planner.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(ROOT), *arguments], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert not canary.exists()
    assert sorted(folder.iterdir()) == before


def test_the_trap_works(trapped):
    folder, canary = trapped
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists()


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


TENSOR = b'{"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}'
HEADERS = {
    "empty": b"",
    "half a length": b"\x10\0\0",
    "length of 2^63": header(b"{}", 1 << 63),
    "length of 2^64 - 1": header(b"{}", (1 << 64) - 1),
    "just above the limit": header(b"{}", 100_000_001),
    "length of nothing": header(b"", 0),
    "cut short": header(b'{"a.weight": ' + TENSOR, 4096),
    "not JSON": header(b"\x80\x04\x95pickle......"),
    "not UTF-8": header(b'{"\xff\xfe": {}}'),
    "a list": header(b"[" + TENSOR + b"]"),
    "the same name twice": header(b'{"a.weight": ' + TENSOR + b', "a.weight": ' + TENSOR + b"}"),
    "deep": header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "NaN": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": [NaN, 4]}}'),
    "offsets turned": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": [4, 0]}}'),
    "offsets below nought": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": [-4, 0]}}'),
    "offsets of 10^30": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": [0, 1' + b"0" * 30 + b"]}}"),
    "offset of 5000 digits": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": [0, ' + b"9" * 5000 + b"]}}"),
    "one offset": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": [4]}}'),
    "offsets as text": header(b'{"a.weight": {"dtype": "BF16", "data_offsets": ["0", "4"]}}'),
    "no dtype": header(b'{"a.weight": {"data_offsets": [0, 4]}}'),
    "a number": header(b'{"a.weight": 4}'),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_headers_are_read_within_limits(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors") as refused:
        summarize_folder(tmp_path)
    assert str(refused.value).isprintable()


def test_a_true_header_reads(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header(b'{"a.weight": ' + TENSOR + b"}") + b"\0" * 4)
    found = summarize_folder(tmp_path)
    assert found is not None
    assert (found.unquantized_modules, found.tensor_bytes) == (("a",), 4)
    assert read_header(tmp_path / "model.safetensors")["a.weight"]["dtype"] == "BF16"


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert summarize_folder(tmp_path) is None
    os.mkfifo(tmp_path / "preprocessor_config.json")
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    assert load_folder(tmp_path).preprocessor == {}
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError):
        load_folder(tmp_path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + step)}: &{chr(98 + step)} [{', '.join([f'*{chr(97 + step)}'] * 9)}]\n" for step in range(20)
)
DOCUMENTS = {
    "object": "!!python/object/apply:os.system ['echo ran >CANARY']",
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "new": "!!python/object/new:os.system ['echo ran >CANARY']",
    "own tag": "!trap {}",
    "binary": "!!binary AAAA",
    "repeated": "{a: 1, a: 2}",
    "repeated, written otherwise": '{"a": 1, a: 2}',
    "a list as key": "{[a]: 1}",
    "a mapping as key": "{{a: 1}: 1}",
    "itself": "&x [*x]",
    "aliases": "[&x {a: 1}, *x]",
    "deep": "[" * 5000 + "]" * 5000,
    "open": "[1, 2",
    "unknown alias": "*nobody",
    "text": "just text",
    "not finite": ".inf",
    "long number": "9" * 5000,
}


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS.keys())
@pytest.mark.parametrize("kind", ["models", "hardware"])
def test_catalogs_are_data(tmp_path, monkeypatch, kind, text):
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    text = text.replace("CANARY", str(canary))
    file = tmp_path / f"{kind}.yaml"
    if kind == "models":
        file.write_text(f"id: own/model\naliases: []\nconfig:\n  architectures: [Qwen2ForCausalLM]\n  x: {text}\n")
        if text in ("just text", "!!binary AAAA"):
            assert load_model_catalog([file]).find("own/model") is not None
            return
    else:
        file.write_text(f"name: own\naliases: []\ndevice_name: own\ncompute_capability: {text}\n")
    with pytest.raises(InputError) as refused:
        find_own(kind, file)
    assert not canary.exists()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 6000


@pytest.mark.parametrize("kind", ["models", "hardware"])
def test_a_few_lines_do_not_become_billions_of_values(tmp_path, kind):
    file = tmp_path / f"{kind}.yaml"
    head = "id: own/model\naliases: []\n" if kind == "models" else "name: own\naliases: []\n"
    file.write_text(head + BOMB)
    with pytest.raises(InputError, match="alias"):
        find_own(kind, file)


def find_own(kind: str, file: Path) -> object:
    return (
        load_model_catalog([file]).find("own/model") if kind == "models" else load_hardware_catalog([file]).find("own")
    )


def test_a_config_that_speaks_to_the_terminal_is_told_as_text(tmp_path, capsys):
    from planner.cli.main import main

    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["\x1b]0;owned\x07\u202eX"]}))
    assert main(["estimate", "--model", str(tmp_path), "--gpus", "l20:1", "--offline"]) in (1, 3)
    shown = "".join(capsys.readouterr())
    assert "owned" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
