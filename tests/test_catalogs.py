"""The two catalogs that ship: every entry is readable, names are unique, facts agree with their sources."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.sources.catalog_files import catalog_texts
from planner.sources.hardware_catalog import load_hardware_catalog, normalized, total_memory_from_nvidia_smi
from planner.sources.load import load_model
from planner.sources.model_catalog import ModelCatalog, load_model_catalog
from planner.sources.yaml_stream import Document, split_documents
from planner.units import MIB

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "tests" / "data" / "configs"
GPUS = load_hardware_catalog().all()
REQUIRED_MODELS = """
    Qwen/Qwen2-VL-2B-Instruct Qwen/Qwen2-VL-7B-Instruct Qwen/Qwen2-VL-72B-Instruct Qwen/Qwen2-VL-72B-Instruct-AWQ
    Qwen/Qwen2.5-VL-3B-Instruct Qwen/Qwen2.5-VL-7B-Instruct Qwen/Qwen2.5-VL-32B-Instruct Qwen/Qwen2.5-VL-72B-Instruct
    Qwen/Qwen2.5-VL-7B-Instruct-AWQ Qwen/Qwen2.5-VL-72B-Instruct-AWQ Qwen/Qwen3-VL-8B-Instruct-FP8
    deepseek-ai/DeepSeek-R1-Distill-Qwen-32B RedHatAI/DeepSeek-R1-Distill-Qwen-32B-quantized.w4a16
    deepseek-ai/DeepSeek-R1-Distill-Llama-70B deepseek-ai/DeepSeek-V3 deepseek-ai/DeepSeek-R1
    meta-llama/Llama-3.3-70B-Instruct mistralai/Mixtral-8x7B-Instruct-v0.1 google/gemma-3-27b-it
    microsoft/phi-4 microsoft/Phi-3.5-mini-instruct zai-org/GLM-4.6 openai/gpt-oss-120b
    OpenGVLab/InternVL3-8B llava-hf/llava-onevision-qwen2-7b-ov-hf moonshotai/Kimi-K2-Instruct MiniMaxAI/MiniMax-M2
""".split()  # noqa: SIM905


def test_catalogs_in_the_package_are_the_files_at_the_top() -> None:
    for name in ("hardware_catalog.yaml", "model_catalog.yaml"):
        link = ROOT / "planner" / "sources" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


@pytest.mark.parametrize("gpu", GPUS, ids=[gpu.name for gpu in GPUS])
def test_gpu_figures_are_plausible_and_sourced(gpu: Any) -> None:
    assert gpu.sources
    assert gpu.memory_evidence in ("measured", "derived")
    assert 8 << 30 < gpu.total_memory_bytes < 300 << 30
    if gpu.nvidia_smi_mib is None:
        assert gpu.integrated
        return
    rule = total_memory_from_nvidia_smi(gpu.nvidia_smi_mib)
    if gpu.memory_evidence == "derived":
        assert gpu.total_memory_bytes == rule
    else:
        assert rule <= gpu.total_memory_bytes < gpu.nvidia_smi_mib * MIB, "the rule must err to less memory"


def test_gpu_names_are_unique() -> None:
    seen: dict[str, str] = {}
    for gpu in GPUS:
        for name in {normalized(name) for name in (gpu.name, *gpu.aliases)}:
            assert name not in seen, f"{name} names {seen[name]} and {gpu.name}"
            seen[name] = gpu.name


@pytest.mark.parametrize(
    ("name", "total_bytes"),
    [
        ("h200", 150_109_880_320),
        ("h100", 85_017_493_504),
        ("a100-80g", 85_093_777_408),
        ("a6000", 50_899_648_512),
        ("4090", 25_250_627_584),
        ("l4", 23_659_151_360),
    ],
)
def test_measured_totals(name: str, total_bytes: int) -> None:
    gpu = load_hardware_catalog().find(name)
    assert (gpu.total_memory_bytes, gpu.memory_evidence) == (total_bytes, "measured")


def test_gpu_prices_have_basis_and_date() -> None:
    for gpu in GPUS:
        for price in gpu.prices:
            assert 0.1 < price.usd_per_gpu_hour < 30
            assert price.source
            assert price.offer
            assert price.date == "undated" or re.fullmatch(r"20\d\d-\d\d-\d\d", price.date)


def test_every_model_entry_is_readable() -> None:
    catalog = load_model_catalog()
    ids = catalog.ids()
    assert len(ids) >= 120
    for identity in ids:
        entry, files = catalog.entry(identity), catalog.find(identity)
        assert entry is not None
        assert files is not None
        assert files.name == identity
        assert files.source
        assert re.match(r"verbatim|reconstructed|written", files.source)
        assert files.config["architectures"]
        for variant in entry.get("variants", {}).values():
            assert catalog.find(variant) is not None, f"{identity} lists {variant}"


def test_an_entry_can_be_shown_as_written() -> None:
    models, gpus = load_model_catalog(), load_hardware_catalog()
    assert models.text("qwen3-8b").startswith("id: Qwen/Qwen3-8B\n")
    assert gpus.text("l20").startswith("name: L20\n")
    assert [files.name for files in models.all()] == list(models.ids())
    with pytest.raises(InputError, match="did you mean Qwen/Qwen3-8B"):
        models.text("qwen/qwen3-8bb")


def test_model_names_are_unique() -> None:
    seen: set[str] = set()
    for document in split_documents(catalog_texts("model")[0].text, "model_catalog.yaml"):
        assert document.names is not None, f"line {document.line}: id and aliases belong on one line each"
        names = {name.casefold() for name in document.names}
        assert not names & seen
        seen |= names


@pytest.mark.parametrize("identity", REQUIRED_MODELS)
def test_required_models_are_known(identity: str) -> None:
    assert load_model(identity, offline=True).name == identity


def test_quantized_checkpoints_carry_their_quantization() -> None:
    catalog = load_model_catalog()
    for identity in catalog.ids():
        if re.search(r"-(AWQ|FP8|GPTQ-Int4|NVFP4)$|w4a16$", identity, re.IGNORECASE):
            files = catalog.find(identity)
            assert files is not None
            nested = [value for value in files.config.values() if isinstance(value, dict)]
            held = [config for config in (files.config, *nested) if config.get("quantization_config")]
            assert held or files.hf_quant, identity


def test_the_72b_awq_is_padded_for_tensor_parallelism() -> None:
    config = load_model("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", offline=True).config
    assert config["intermediate_size"] == 29696
    assert config["quantization_config"] == {
        "bits": 4,
        "group_size": 128,
        "modules_to_not_convert": ["visual"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def test_the_w4a16_distill_is_pack_quantized() -> None:
    quantization = load_model("deepseek-r1-distill-qwen-32b-int4", offline=True).config["quantization_config"]
    weights = quantization["config_groups"]["group_0"]["weights"]
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "pack-quantized")
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 128, True)
    assert quantization["ignore"] == ["lm_head"]


def published() -> list[tuple[str, str]]:
    """Verbatim configs of models that the catalog has; edited, reconstructed and made-up ones prove nothing here."""
    known = set(load_model_catalog().ids())
    with (CONFIGS / "PROVENANCE.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] == "verbatim" and row["hf_id"] in known]
    assert len(rows) >= 12
    return [(row["dir"], row["hf_id"]) for row in rows]


@pytest.mark.parametrize(("folder", "identity"), published())
def test_catalog_agrees_with_the_published_config(folder: str, identity: str) -> None:
    files = load_model(identity, offline=True)
    original = json.loads((CONFIGS / folder / "config.json").read_text(encoding="utf-8"))
    assert disagreements(files.config, original) == []
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "quantization_config",
        "sliding_window",
        "torch_dtype",
    ):
        assert (key in files.config) == (key in original)
    side = CONFIGS / folder / "preprocessor_config.json"
    if side.is_file():
        assert files.preprocessor
        assert disagreements(files.preprocessor, json.loads(side.read_text(encoding="utf-8"))) == []


def disagreements(kept: dict[str, Any], original: dict[str, Any], path: str = "") -> list[str]:
    found: list[str] = []
    for key, value in kept.items():
        if key not in original:
            found.append(f"{path}{key} is not in the published file")
        elif isinstance(value, dict) and isinstance(original[key], dict):
            found += disagreements(value, original[key], f"{path}{key}.")
        elif value != original[key] or type(value) is not type(original[key]):
            found.append(f"{path}{key}: {value!r} != {original[key]!r}")
    return found


def test_one_model_is_found_without_parsing_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = catalog_texts("model")
    parsed: list[int] = []
    parse = Document.parse

    def counted(document: Document) -> dict[str, Any]:
        parsed.append(document.start)
        return parse(document)

    monkeypatch.setattr(Document, "parse", counted)
    assert ModelCatalog(texts).find("Qwen/Qwen3-8B") is not None
    assert len(parsed) == 1


def test_lookups_are_quick() -> None:
    load_model("Qwen/Qwen3-8B", offline=True)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        load_model("Qwen/Qwen3-8B", offline=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.015 * 3, "a look-up takes about 10 ms; three times the budget allows for a busy machine"
