"""The flags that planning commands share, declared once, and the request they make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer
from msgspec import Struct

from planner.api import Request
from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.memory.intervals import Confidence
from planner.units import parse_human_int, parse_size


class _Flag(Struct, frozen=True):
    """One vLLM flag: the field of EngineArgs, its type on the command line, and its help."""

    field: str
    kind: type
    help: str
    parse: Callable[[str], Any] | None = None

    @property
    def spelling(self) -> str:
        return "--" + self.field.replace("_", "-")


def _max_model_len(text: str) -> int:
    if text.lower() in ("auto", "-1"):
        return -1
    return parse_human_int(text)


def _bytes(text: str) -> int:
    return int(parse_size(text)) if "b" in text.lower() else parse_human_int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(",", " ").split() if name)


_INT = parse_human_int
ENGINE_FLAGS: tuple[_Flag, ...] = (
    _Flag("tensor_parallel_size", str, "GPUs that share each layer.", _INT),
    _Flag("pipeline_parallel_size", str, "Stages of consecutive layers.", _INT),
    _Flag("data_parallel_size", str, "Copies of the attention layers.", _INT),
    _Flag("decode_context_parallel_size", str, "GPUs that share each sequence's cache in decode.", _INT),
    _Flag("enable_expert_parallel", bool, "Whole experts per GPU instead of slices."),
    _Flag("max_model_len", str, "Longest prompt plus output, in tokens; 'auto' fits it to memory.", _max_model_len),
    _Flag("max_num_seqs", str, "Sequences in one step.", _INT),
    _Flag("max_num_batched_tokens", str, "Tokens in one step.", _INT),
    _Flag("kv_cache_dtype", str, "auto, fp8, fp8_e4m3, fp8_e5m2, ..."),
    _Flag("gpu_memory_utilization", float, "Share of the card's total memory given to the engine."),
    _Flag("dtype", str, "auto, bfloat16, float16, half, float32."),
    _Flag("quantization", str, "awq, gptq, fp8, compressed-tensors, ..."),
    _Flag("enforce_eager", bool, "No CUDA graphs, no compilation."),
    _Flag("block_size", str, "Tokens in one cache block.", _INT),
    _Flag("limit_mm_per_prompt", str, 'JSON, for example {"image": 4, "video": 0}.'),
    _Flag("mm_processor_kwargs", str, 'JSON, for example {"max_pixels": 1003520}.'),
    _Flag("mm_encoder_tp_mode", str, "weights (shard the encoder) or data (copy it)."),
    _Flag("skip_mm_profiling", bool, "Do not profile the encoder at startup."),
    _Flag("language_model_only", bool, "Serve the language model without its towers."),
    _Flag("max_cudagraph_capture_size", str, "Largest batch captured as a graph.", _INT),
    _Flag("kv_cache_memory_bytes", str, "Bytes for the cache, instead of a utilization.", _bytes),
    _Flag("num_gpu_blocks_override", str, "Blocks of the cache, instead of what fits.", _INT),
    _Flag("speculative_config", str, 'JSON, for example {"method": "ngram", "num_speculative_tokens": 3}.'),
    _Flag("enable_lora", bool, "Reserve slots for LoRA adapters."),
    _Flag("max_loras", str, "Adapters in one batch.", _INT),
    _Flag("max_lora_rank", str, "Largest adapter rank.", _INT),
    _Flag("max_cpu_loras", str, "Adapters kept in host memory.", _INT),
    _Flag("fully_sharded_loras", bool, "Divide adapters over GPUs wholly, not by half."),
    _Flag("lora_dtype", str, "auto (the model's), float16 or bfloat16."),
    _Flag("lora_target_modules", str, "Layers that get adapters, with commas: q_proj,o_proj.", _names),
    _Flag("specialize_active_lora", bool, "Capture CUDA graphs for each power of two of active adapters."),
    _Flag("enable_tower_connector_lora", bool, "Adapters on a vision tower too."),
    _Flag("hf_overrides", str, "JSON merged over config.json."),
    _Flag("trust_remote_code", bool, "Passed on to the command; vplan itself runs nothing."),
)


def _optional(kind: type, help_text: str, *names: str) -> Any:
    return Annotated[kind | None, typer.Option(*names, help=help_text, show_default=False)]


def _parameters(required: bool) -> list[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    model_default: Any = ... if required else None
    found = [
        inspect.Parameter(
            "model",
            keyword,
            default=model_default,
            annotation=Annotated[
                str | None if not required else str,
                typer.Option(
                    "--model",
                    help="Folder, config.json, catalog id, Hugging Face or ModelScope id.",
                    show_default=False,
                ),
            ],
        ),
        inspect.Parameter(
            "gpus",
            keyword,
            default=model_default,
            annotation=Annotated[
                str | None if not required else str,
                typer.Option(
                    "--gpus", help="NAME:COUNT, NAME:COUNTxNODES, NAME:COUNT@44.5GiB, or local.", show_default=False
                ),
            ],
        ),
        inspect.Parameter(
            "vllm_version", keyword, default=None, annotation=_optional(str, "Release to plan for.", "--vllm-version")
        ),
        inspect.Parameter(
            "confidence",
            keyword,
            default="safe",
            annotation=Annotated[
                str,
                typer.Option("--confidence", help="safe: the verdict holds at the intervals' bad ends; or expected."),
            ],
        ),
        inspect.Parameter(
            "source",
            keyword,
            default="hf",
            annotation=Annotated[str, typer.Option("--source", help="Where ids are looked up: hf or modelscope.")],
        ),
        inspect.Parameter(
            "offline",
            keyword,
            default=False,
            annotation=Annotated[bool, typer.Option("--offline", help="Never use the network.")],
        ),
        inspect.Parameter(
            "env",
            keyword,
            default=None,
            annotation=Annotated[
                list[str] | None,
                typer.Option("--env", help="NAME=VALUE that changes memory; repeatable.", show_default=False),
            ],
        ),
        inspect.Parameter(
            "hardware_catalog",
            keyword,
            default=None,
            annotation=Annotated[
                list[str] | None,
                typer.Option("--hardware-catalog", help="More GPUs, a YAML file; repeatable.", show_default=False),
            ],
        ),
        inspect.Parameter(
            "model_catalog",
            keyword,
            default=None,
            annotation=Annotated[
                list[str] | None,
                typer.Option("--model-catalog", help="More models, a YAML file; repeatable.", show_default=False),
            ],
        ),
        inspect.Parameter(
            "calibration",
            keyword,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    "--calibration", help="A file of `vplan calibrate`, or none; yours by default.", show_default=False
                ),
            ],
        ),
    ]
    for flag in ENGINE_FLAGS:
        annotation = _optional(flag.kind, flag.help, flag.spelling)
        default: Any = None
        if flag.kind is bool:
            annotation = Annotated[bool, typer.Option(flag.spelling, help=flag.help)]
            default = False
        found.append(inspect.Parameter(flag.field, keyword, default=default, annotation=annotation))
    return found


def planning_options(*, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every shared flag; the command receives them as one `request`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "request"]
        shared = _parameters(required)

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            mine = {parameter.name: values.pop(parameter.name) for parameter in own}
            command(request=_request(values), **mine)

        signature = inspect.Signature([*shared, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)])
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return wrapper

    return decorate


def _request(values: dict[str, Any]) -> Request:
    given: dict[str, Any] = {}
    for flag in ENGINE_FLAGS:
        value = values[flag.field]
        if value is None or value is False:
            continue
        given[flag.field] = _parsed(flag, value)
    if "mm_encoder_tp_mode" in given and given["mm_encoder_tp_mode"] not in ("weights", "data"):
        raise InputError(f"--mm-encoder-tp-mode: choose weights or data, not {given['mm_encoder_tp_mode']!r}")
    for name in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
        "decode_context_parallel_size",
        "max_loras",
        "max_lora_rank",
        "max_cpu_loras",
        "num_gpu_blocks_override",
    ):
        if name in given and given[name] < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1")
    utilization = given.get("gpu_memory_utilization")
    if utilization is not None and not 0 < utilization <= 1:
        raise InputError(f"--gpu-memory-utilization must be above 0 and at most 1, not {utilization}")
    if values["confidence"] not in get_args(Confidence):
        raise InputError(f"--confidence: choose safe or expected, not {values['confidence']!r}")
    return Request(
        confidence=values["confidence"],
        model=values["model"] or "",
        gpus=values["gpus"] or "",
        vllm_version=values["vllm_version"],
        source=values["source"],
        offline=values["offline"],
        hardware_catalogs=tuple(values["hardware_catalog"] or ()),
        model_catalogs=tuple(values["model_catalog"] or ()),
        calibration=values["calibration"],
        given=tuple(sorted(given)),
        args=EngineArgs(**given, env=tuple(_assignment(item) for item in values["env"] or ())),
    )


def _parsed(flag: _Flag, value: Any) -> Any:
    if flag.parse is None:
        return value
    try:
        return flag.parse(value)
    except InputError as error:
        raise InputError(f"{flag.spelling}: {error}") from None


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--env: write NAME=VALUE, not {text!r}")
    return name, value
