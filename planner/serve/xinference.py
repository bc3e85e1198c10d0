"""`xinference launch` with the vLLM engine: its options as vLLM's, and its own defaults where they differ.

Source: Xinference deploy/cmdline.py (launch) and model/llm/vllm/core.py (_sanitize_model_config), releases 0.15 to 1.x.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.errors import InputError, UnsupportedError
from planner.values import reject

_SHORT = {
    "-e": "endpoint", "-n": "model-name", "-t": "model-type", "-en": "model-engine", "-u": "model-uid",
    "-s": "size-in-billions", "-f": "model-format", "-q": "quantization", "-r": "replica", "-lm": "lora-modules",
    "-mp": "model-path", "-ak": "api-key",
}  # fmt: skip
_OWN_NAMES = """
endpoint model-name model-type model-engine model-uid size-in-billions model-format quantization replica n-gpu
model-path worker-ip gpu-idx trust-remote-code api-key n-worker download_hub download-hub
"""
_OWN = frozenset(_OWN_NAMES.split())
_DEFAULTS = {"gpu_memory_utilization": "0.90", "max_num_seqs": "256", "block_size": "16"}
_IGNORED = ("swap_space", "reasoning_content", "enable_thinking")
_TRUE = ("true", "True", "1")


def engine_arguments(arguments: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """The words that `vllm serve` would need for the same engine, and the model's folder where --model-path names it.

    Xinference hands every option it does not know to the engine, under the name as written. Raises Rejected for
    other engines, InputError for what is no option, UnsupportedError for options without a vLLM counterpart here.
    """
    own: dict[str, str] = {}
    engine: dict[str, str] = {}
    words = list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        name = _SHORT.get(option, option.removeprefix("--"))
        if not option.startswith("-"):
            raise InputError(f"--command: xinference launch does not take {option!r} on its own")
        if name == "lora-modules":
            raise UnsupportedError("lora-modules", "xinference launch --lora-modules is not supported by this planner")
        if not equals:
            if not words:
                raise InputError(f"--command: xinference option {option} has no value")
            value = words.pop(0)
        (own if name in _OWN else engine)[name] = value
    _refuse_other_engines(own)
    merged = _DEFAULTS | engine
    if own.get("n-gpu", "auto") not in ("auto", "None"):
        merged.setdefault("tensor_parallel_size", own["n-gpu"])
    if int(own.get("n-worker", "1")) > 1:
        merged.setdefault("pipeline_parallel_size", own["n-worker"])
    pixels = {name: merged.pop(name) for name in ("min_pixels", "max_pixels") if name in merged}
    found: list[str] = []
    for name, value in merged.items():
        if name in _IGNORED:
            continue
        if value in (*_TRUE[:2], "False", "false"):
            found.append(f"--{name}" if value in _TRUE else f"--no-{name}")
        else:
            found += [f"--{name}", value]
    for name, value in pixels.items():
        found += [f"--mm-processor-kwargs.{name}", value]
    if own.get("trust-remote-code", "true") in _TRUE:
        found.append("--trust-remote-code")
    return tuple(found), own.get("model-path", "")


def _refuse_other_engines(own: dict[str, str]) -> None:
    engine = own.get("model-engine")
    if engine is None:
        raise reject("flag", "xinference launch needs --model-engine", fix=("--model-engine vLLM",))
    if engine.lower() != "vllm":
        raise UnsupportedError("model-engine", f"xinference --model-engine {engine}: only the vLLM engine is planned")
    if int(own.get("replica", "1")) > 1:
        raise UnsupportedError("replica", "xinference --replica: plan one replica on its own GPUs")
