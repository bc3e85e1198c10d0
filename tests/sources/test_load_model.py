"""`--model`: the order of search, folders read as data, and one clear line for everything that cannot be a model."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, OutsideError
from planner.sources.load import load_model, looks_like_path
from planner.sources.safetensors_headers import MAX_HEADER_BYTES

CONFIGS = Path(__file__).resolve().parent.parent / "data" / "configs"


def folder_with(tmp_path: Path, **files: Any) -> Path:
    """A model folder with the given files (name without .json) as JSON."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in {"config": {"architectures": ["X"]}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file with a header only: dtype and data_offsets by tensor name."""
    entries = {name: {"dtype": dtype, "shape": [], "data_offsets": span} for name, (dtype, span) in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_a_folder_is_read_whole() -> None:
    folder = CONFIGS / "Qwen__Qwen3-VL-4B-Instruct"
    files = load_model(str(folder))
    assert files.name == str(folder)
    assert files.path == str(folder)
    assert files.config == json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert files.preprocessor["size"]["longest_edge"] == 16777216
    assert files.video_preprocessor["size"]["longest_edge"] == 25165824


def test_a_config_json_brings_its_neighbours() -> None:
    files = load_model(str(CONFIGS / "Qwen__Qwen2.5-VL-7B-Instruct" / "config.json"))
    assert files.preprocessor["max_pixels"] == 12845056


def test_a_config_under_another_name_stands_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CONFIGS / "Qwen__Qwen2.5-VL-7B-Instruct", folder)
    (folder / "config.json").rename(folder / "other.json")
    files = load_model(str(folder / "other.json"))
    assert files.config["model_type"] == "qwen2_5_vl"
    assert files.preprocessor == {}


def test_a_folder_wins_over_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "Qwen" / "Qwen3-8B"
    here.mkdir(parents=True)
    (here / "config.json").write_text('{"architectures": ["Mine"]}', encoding="utf-8")
    assert load_model("Qwen/Qwen3-8B").config["architectures"] == ["Mine"]


def test_catalog_names_ignore_case_and_have_aliases() -> None:
    for name in ("Qwen/Qwen3-8B", "qwen/qwen3-8b", "QWEN3-8B"):
        assert load_model(name, offline=True).name == "Qwen/Qwen3-8B"


def test_users_models_override_the_catalog(user_config: Path, tmp_path: Path) -> None:
    (user_config / "models-lab.yaml").write_text("id: lab/tiny\nconfig: {architectures: [Lab]}\n", encoding="utf-8")
    extra = tmp_path / "mine.yaml"
    extra.write_text(
        "# ours\n---\nid: Qwen/Qwen3-8B\naliases:\n- ours\nconfig:\n  architectures: [Ours]\n---\n", encoding="utf-8"
    )
    assert load_model("lab/tiny", offline=True).config["architectures"] == ["Lab"]
    for name in ("qwen/qwen3-8b", "ours"):
        assert load_model(name, offline=True, model_catalog_paths=[extra]).config["architectures"] == ["Ours"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("id: ours\naliases: [x]\n", "needs a config"),
        ("id: ours\naliases: [x]\nconfig: {a: 1}\nweight: 3\n", "unknown key 'weight'"),
        ("id: ours\naliases: [x]\nconfig: {a: .nan}\n", "'a' holds nan"),
        ("id: ours\naliases: [x]\nconfig: {a: 1, a: 2}\n", "the key 'a' is repeated"),
        ("id: ours\naliases: [x]\nconfig: {a: 1}\ncheckpoint_bytes: many\n", "whole number of bytes"),
        ("id: ours\naliases: [x]\nconfig: {a: 1}\nunquantized_modules: lm_head\n", "list of module names"),
        ("id: ours\naliases: [x]\nconfig: {a: 1}\nprocessor: 3\n", "processor must be a mapping"),
    ],
)
def test_a_bad_users_entry_is_one_line(tmp_path: Path, entry: str, says: str) -> None:
    extra = tmp_path / "mine.yaml"
    extra.write_text(entry, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_model("ours", offline=True, model_catalog_paths=[extra])
    assert says in str(caught.value)
    assert "line" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "broken JSON at line 1, column 1"),
        (b'{"a": 1,\n "b": }', "broken JSON at line 2, column 7"),
        (b"[1, 2]", "expected a JSON object, found a list"),
        (b"null", "found null"),
        (b"3", "found a number"),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 7)"),
        (b'{"a": 1, "a": 2}', "the key 'a' is repeated"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' is repeated"),
        (b'{"a": NaN}', "'a' holds nan"),
        (b'{"a": [1, -Infinity]}', "'a' holds -inf"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b"[" * 100_000, "deeper than 64"),
        (b'{"a": ' + b"9" * 5000 + b"}", "config.json"),
        (b" " * (8 << 20) + b"{}", "larger than 8 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_config_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nesting_and_infinity_that_published_configs_have(tmp_path: Path) -> None:
    deep = '{"a":' * 63 + "1" + "}" * 63
    text = f'{{"time_step_limit": [0.0, Infinity], "deep": {deep}}}'
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert load_model(str(tmp_path)).config["time_step_limit"] == [0.0, float("inf")]


@pytest.mark.parametrize(
    "reference", ["./none", "/no/such/folder", "~/none", "a/b/c", "config.json", "..\\up", "", "  ", "a/b\0/c"]
)
def test_a_path_that_is_not_there(reference: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        load_model(reference)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "gpt2", "owner/name.with.dots"])
def test_ids_do_not_look_like_paths(name: str) -> None:
    assert not looks_like_path(name)


def test_an_unknown_id_offline_has_near_misses() -> None:
    with pytest.raises(InputError) as caught:
        load_model("Qwen/Qwen3-88B", offline=True)
    assert "did you mean Qwen/Qwen3-8B" in str(caught.value)


@pytest.mark.parametrize("source", ["hf", "modelscope"])
@pytest.mark.parametrize("reference", ["../../etc", "own er/name", "a" * 200, "https://x.y"])
def test_what_is_no_repository_id_is_never_fetched(reference: str, source: Any) -> None:
    with pytest.raises(InputError):
        load_model(reference, source=source)


def test_headers_name_quantized_modules_and_size(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, config={"quantization_config": {"quant_method": "awq"}})
    q, head = "model.layers.0.mlp.up_proj", "lm_head"
    write_safetensors(
        folder / "model-1.safetensors",
        {f"{q}.qweight": ("I32", [0, 64]), f"{q}.scales": ("F16", [64, 80]), "model.norm.weight": ("BF16", [80, 96])},
    )
    write_safetensors(folder / "model-2.safetensors", {f"{head}.weight": ("F32", [0, 400])})
    files = load_model(str(folder))
    assert files.quantized_modules == (q,)
    assert files.unquantized_modules == (head, "model.norm")
    assert files.checkpoint_bytes == 496


def test_the_index_gives_the_size_without_headers(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path, **{"model.safetensors.index": {"metadata": {"total_size": 1234.0}, "weight_map": {}}}
    )
    (folder / "model.safetensors").write_bytes(b"never read")
    files = load_model(str(folder))
    assert (files.checkpoint_bytes, files.unquantized_modules) == (1234, None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a safetensors file"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{", "not a safetensors file"),
        (struct.pack("<Q", 50) + b"{}", "cut short"),
        (struct.pack("<Q", 2) + b"[]", "expected a JSON object"),
        (struct.pack("<Q", 10) + b'{"a": {} }', "entry of 'a'"),
    ],
)
def test_a_bad_safetensors_file_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model(str(folder))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_insecure_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    with pytest.raises(InputError, match="only https"):
        load_model("owner/not-in-the-catalog")


def test_hugging_face_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OutsideError, match="huggingface_hub"):
        load_model("owner/not-in-the-catalog")
