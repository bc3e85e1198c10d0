"""What is fuzzed: each target takes one text and either answers, or raises what the command line tells in one line."""

from __future__ import annotations

import functools
import json
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutate
import yaml

from planner import api
from planner.cli.launched import request_of_plan_alone
from planner.doctor.log import read_log
from planner.doctor.recognise import diagnose
from planner.engine.args import EngineArgs
from planner.errors import InputError, PlannerError
from planner.memory.assess import assess
from planner.model.build import build_model
from planner.monitor.metrics import read_metrics
from planner.serve.parse import RefusedCommand, check_command, parse_command
from planner.sources.catalog_files import CatalogText
from planner.sources.gpu_pool import parse_gpus
from planner.sources.hardware_catalog import HardwareCatalog
from planner.sources.json_file import parse_json_object
from planner.sources.model_catalog import ModelCatalog
from planner.sources.model_folder import assemble
from planner.units import parse_human_int, parse_size
from planner.values import Rejected
from planner.verify.readings import clean, find_failure, partial_reading

DATA = Path(__file__).resolve().parents[1] / "data"
ROOT = DATA.parents[1]
TOLD = (PlannerError, Rejected, RefusedCommand)
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
"""Keys that are whole numbers above zero in every configuration class that has them."""


class Finding(AssertionError):
    """An answer that must not be."""


def _configs() -> list[dict[str, Any]]:
    found = []
    for path in sorted((DATA / "configs").glob("*/config.json")):
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


CONFIGS = _configs()


@functools.cache
def _pool(spelling: str) -> Any:
    return api.load_gpus(api.Request(model="", gpus=spelling, calibration="none"))


def config(text: str) -> None:
    """config.json to an estimate on one H200."""
    document = parse_json_object(text, "config.json")
    files = assemble("m", document, {}, headers=None, index_total=None, source="config.json")
    model = build_model(files)
    estimate = assess(model, _pool("h200:8"), EngineArgs(enforce_eager=True), api.DEFAULT_VERSION).estimate
    if estimate.starts:
        _must_be_possible(document, estimate)


def _must_be_possible(document: dict[str, Any], estimate: Any) -> None:
    """A plan for a config that transformers or vLLM would not take is worse than none."""
    nested = any(key.endswith("_config") and key != "quantization_config" for key in document)
    for key in () if nested else SIZES:
        size = document.get(key, 1)
        if isinstance(size, float) and size.is_integer():
            size = int(size)
        if size is not None and (type(size) is not int or not 0 < size < 2**40):
            raise Finding(f"starts with {key} = {size!r}")
    books = estimate.per_gpu
    if not 0 < books.parameter_bytes <= books.weights_memory_bytes < books.total_memory_bytes:
        raise Finding(f"weights of {books.weights_memory_bytes} bytes of {books.parameter_bytes} start")
    if not 0 < books.available_kv_cache_bytes < books.total_memory_bytes:
        raise Finding(f"a cache of {books.available_kv_cache_bytes} bytes starts")


def command(text: str) -> None:
    """A pasted launch command, its flags resolved and checked against two releases."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    check_command(words)
    check_command(words, "0.33.0")
    parse_command(text)


def gpus(text: str) -> None:
    """`--gpus` and the sizes that flags take."""
    for read in (lambda: parse_gpus(text, _catalog()), lambda: parse_size(text), lambda: parse_human_int(text)):
        try:
            read()
        except InputError:
            continue


@functools.cache
def _catalog() -> HardwareCatalog:
    from planner.sources.hardware_catalog import load_hardware_catalog

    return load_hardware_catalog()


def log(text: str) -> None:
    """A log of any engine: the doctor, the readings of verify, the metrics of monitor."""
    diagnose(read_log(text))
    lines = [clean(line) for line in text.splitlines()]
    find_failure(lines)
    partial_reading(lines, "0.26.0")


def metrics(text: str) -> None:
    """What a server answers on /metrics."""
    read_metrics(text)


def hardware(text: str) -> None:
    """A user's own hardware catalog."""
    for spec in HardwareCatalog([CatalogText("mine.yaml", text)]).all():
        if spec.total_memory_bytes <= 0:
            raise Finding(f"a card of {spec.total_memory_bytes} bytes")


def models(text: str) -> None:
    """A user's own model catalog: every entry, and a lookup."""
    catalog = ModelCatalog([CatalogText("mine.yaml", text)])
    catalog.find("Qwen/Qwen3-0.6B")


def plan(text: str) -> None:
    """A plan file, as `verify --plan`, `report`, `compare` and `monitor` read it."""
    path = _scratch() / "plan.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    request_of_plan_alone(str(path), 1, api.Request(model="", gpus=""))


@functools.cache
def _scratch() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="vplan-fuzz-"))


@functools.cache
def _seeds(name: str) -> list[Any]:
    if name == "log":
        files = [*sorted((DATA / "logs").glob("*.log")), *sorted((DATA / "doctor").rglob("*.txt"))]
        return [file.read_text(encoding="utf-8", errors="replace")[-6000:] for file in files]
    if name == "metrics":
        files = sorted((DATA / "monitor").glob("*.prom")) or sorted((DATA / "monitor").glob("*.txt"))
        return [file.read_text(encoding="utf-8")[:20000] for file in files]
    if name in ("hardware", "models"):
        file = ROOT / ("hardware_catalog.yaml" if name == "hardware" else "model_catalog.yaml")
        documents = [
            item for item in yaml.safe_load_all(file.read_text(encoding="utf-8")[:60000].rsplit("\n---", 1)[0]) if item
        ]
        return [json.loads(json.dumps(item, default=str)) for item in documents]
    return json.loads((Path(__file__).with_name("plans.json")).read_text(encoding="utf-8")) if name == "plan" else []


_FLAGS = (
    "--tensor-parallel-size",
    "-tp",
    "--max-model-len",
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--quantization",
    "--dtype",
    "--limit-mm-per-prompt",
    "--mm-processor-kwargs",
    "--max-num-seqs",
    "--enforce-eager",
    "--swap-space",
    "--no-enable-prefix-caching",
    "--compilation-config",
    "--speculative-config",
    "--block-size",
    "--hf-overrides",
    "--trust-remote-code",
    "--served-model-name",
    "--max-num-batched-tokens",
    "-O3",
    "--config",
    "--env",
    "--",
    "-",
)
_LAUNCHERS = (
    "vllm serve",
    "python -m vllm.entrypoints.openai.api_server --model",
    "docker run --gpus all vllm/vllm-openai --model",
    "CUDA_VISIBLE_DEVICES=0,1 vllm serve",
    "xinference launch --model-name",
    "sudo -E env A=b vllm serve",
    "vllm",
    "",
)
_VALUES = (
    "8",
    "0.9",
    "auto",
    "fp8",
    "awq",
    '{"image": 2}',
    "image=5",
    "-1",
    "1k",
    "16K",
    "1e9",
    "nan",
    "99999999999999999999",
    "{",
    "Qwen/Qwen3-0.6B",
    "'a b'",
    "$(id)",
    "\\",
    "/m",
    "''",
)


def _command(rng: random.Random) -> str:
    words = [rng.choice(_LAUNCHERS), rng.choice(_VALUES)]
    for _ in range(rng.randrange(7)):
        words.append(rng.choice(_FLAGS) + rng.choice((" ", "=")) + (rng.choice(_VALUES) if rng.random() < 0.8 else ""))
    whole = " ".join(words)
    return mutate.text(whole, rng) if rng.random() < 0.4 else whole


def _gpus(rng: random.Random) -> str:
    name = rng.choice(("l20", "l200", "H200", "a100-40g", "rtx 4090", "local", "t4", ""))
    whole = name + rng.choice(("", ":8", ":0", ":-1", ":8x2", ":1000000000", "::", ":8x", "x2")) + rng.choice(
        ("", "@44.5GiB", "@0", "@1e99GiB", "@-3", "@44", "@nan")
    )  # fmt: skip
    return mutate.text(whole, rng) if rng.random() < 0.6 else whole


def _yaml(name: str, rng: random.Random) -> str:
    whole = yaml.safe_dump(mutate.structure(rng.choice(_seeds(name)), rng), allow_unicode=True)
    return mutate.text(whole, rng) if rng.random() < 0.3 else whole


TARGETS: dict[str, tuple[Callable[[str], None], Callable[[random.Random], str], int]] = {
    "config": (config, lambda rng: mutate.json_text(rng.choice(CONFIGS), rng), 6_000),
    "command": (command, _command, 6_000),
    "gpus": (gpus, _gpus, 120_000),
    "log": (log, lambda rng: mutate.text(mutate.text(rng.choice(_seeds("log")), rng), rng), 8_000),
    "metrics": (metrics, lambda rng: mutate.text(mutate.text(rng.choice(_seeds("metrics")), rng), rng), 24_000),
    "hardware": (hardware, lambda rng: _yaml("hardware", rng), 16_000),
    "models": (models, lambda rng: _yaml("models", rng), 8_000),
    "plan": (plan, lambda rng: mutate.json_text(rng.choice(_seeds("plan")), rng), 12_800),
}
"""Name -> (what takes a text, what makes one, how many of them a run of the tests has)."""
