"""The changes that an out-of-memory ladder may make to a launch, in the order of how little they hurt.

What nobody asked for goes first: a cache size fixed by hand, media that the launch does not name, default sizes above
what most services use. Then what costs speed or concurrency, then accuracy and length, then more of the cards at hand,
another checkpoint, and more cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.hardware.spec import GpuPool
from planner.memory.multimodal.media import processed_within
from planner.memory.relief import MODEST_PIXELS
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches
from planner.search.space import BATCHED_TOKENS, SEQUENCES

USUAL_SEQS, FEWEST_SEQS = 32, 4
USUAL_LENGTH, SHORTEST_LENGTH = 8192, 2048
FEWEST_BATCHED_TOKENS = 1024
GRAPH_SIZES = (64, 16, 4)
MOST_CARDS = 16
CACHE_SIZES = ("kv_cache_memory_bytes", "num_gpu_blocks_override")


class Change(Struct, frozen=True):
    """One change. `fields`: of EngineArgs, with their new values. `costs`: what it takes from the user.

    `checkpoint`: another model; `cards`: GPUs in each node. None: as they are.
    """

    fields: tuple[tuple[str, str | int | float | bool | None], ...]
    costs: str
    checkpoint: str | None = None
    cards: int | None = None

    def apply(self, args: EngineArgs) -> EngineArgs:
        return args.model_copy(update=dict(self.fields))


Rung = tuple[Change, ...]
"""Values of one flag, the mildest first."""


def rungs(
    model: ModelSpec, gpus: GpuPool, args: EngineArgs, config: EngineConfig, given: frozenset[str],
    checkpoints: tuple[str, ...],
) -> tuple[Rung, ...]:  # fmt: skip
    """The ladder for a launch that vLLM resolves to `config`. `given`: fields of `args` that the user set."""
    asked_length, asked_media = "max_model_len" in given, "limit_mm_per_prompt" in given
    length = config.max_model_len if config.max_model_len > 0 else model.derived_max_model_len
    found = [
        tuple(_by_hand(args)),
        () if asked_media else tuple(_media(config)),
        () if "max_num_seqs" in given else tuple(_sequences(config, USUAL_SEQS)),
        () if "max_num_batched_tokens" in given else tuple(_batched(config, BATCHED_TOKENS[0])),
        () if asked_length else tuple(_lengths(length, USUAL_LENGTH)),
        tuple(_pixels(model, args)),
        tuple(_graphs(args, config)),
        tuple(_sequences(config, FEWEST_SEQS)),
        tuple(_batched(config, FEWEST_BATCHED_TOKENS)),
        tuple(_media(config)) if asked_media else (),
        (Change((("enforce_eager", True),), "no CUDA graphs and no compilation: slower, most at small batches"),)
        if not args.enforce_eager
        else (),
        (Change((("kv_cache_dtype", "fp8"),), "a cache of 8 bits: a little accuracy"),)
        if args.kv_cache_dtype == "auto"
        else (),
        tuple(_lengths(length, SHORTEST_LENGTH)),
        tuple(_tensor_parallel(args, gpus)),
        tuple(_text_only(config)),
        tuple(
            Change((("quantization", None), ("dtype", "auto")), "another checkpoint: some accuracy", checkpoint=name)
            for name in checkpoints
        ),
        tuple(_more_cards(args, gpus)),
    ]
    return tuple(rung for rung in found if rung)


def flag_text(field: str, value: str | int | float | bool | None) -> str:
    """A field as it is written on the command line; dropping it is spelt `without --name`."""
    flag = "--" + field.replace("_", "-")
    if value is None or value is False:
        return f"without {flag}"
    if value is True:
        return flag
    return f"{flag} '{value}'" if isinstance(value, str) and value.startswith("{") else f"{flag} {value}"


def _by_hand(args: EngineArgs) -> Iterator[Change]:
    fixed = [name for name in CACHE_SIZES if getattr(args, name) is not None]
    if fixed:
        yield Change(tuple((name, None) for name in fixed), "nothing: vLLM sizes the cache itself")


def _media(config: EngineConfig) -> Iterator[Change]:
    """Without the other modalities than images, then one image a prompt."""
    limits = dict(config.mm_limits)
    if not limits or config.language_model_only:
        return
    others = {name: 0 for name in limits if name != "image"}
    if others and any(limits[name] for name in others):
        yield _limits({**limits, **others}, f"no {' and no '.join(f'{name}s' for name in others)} in requests")
    if limits.get("image", 0) > 1:
        yield _limits({**limits, **others, "image": 1}, "one image in a request")


def _text_only(config: EngineConfig) -> Iterator[Change]:
    if any(count for _, count in config.mm_limits) and not config.language_model_only:
        yield _limits({name: 0 for name, _ in config.mm_limits}, "text only: no images in requests")


def _limits(limits: dict[str, int], costs: str) -> Change:
    return Change((("limit_mm_per_prompt", json.dumps(limits)),), costs)


def _sequences(config: EngineConfig, least: int) -> Iterator[Change]:
    for size in reversed(SEQUENCES):
        if least <= size < config.max_num_seqs:
            yield Change((("max_num_seqs", size),), f"at most {size} requests in a step, more of them wait")


def _batched(config: EngineConfig, least: int) -> Iterator[Change]:
    for size in (*reversed(BATCHED_TOKENS), FEWEST_BATCHED_TOKENS):
        if least <= size < config.max_num_batched_tokens:
            yield Change((("max_num_batched_tokens", size),), f"prompts are read {size} tokens at a time")


def _lengths(length: int, least: int) -> Iterator[Change]:
    """Halves of the length, in whole 256s."""
    size = length // 2 // 256 * 256
    while size >= least:
        yield shorter(size)
        size = size // 2 // 256 * 256


def shorter(length: int) -> Change:
    return Change((("max_model_len", length),), f"prompt and output together at most {length:,} tokens")


def _pixels(model: ModelSpec, args: EngineArgs) -> Iterator[Change]:
    rule = model.vision.image if model.vision is not None else None
    if model.vision is None or not isinstance(rule, DynamicPatches) or not processed_within(model.vision, "max_pixels"):
        return
    try:
        given = json.loads(args.mm_processor_kwargs or "{}")
    except ValueError:
        return
    most = given.get("max_pixels") or rule.max_pixels
    for pixels in sorted({most // 2, most // 4, MODEST_PIXELS, MODEST_PIXELS // 4}, reverse=True):
        if MODEST_PIXELS // 4 <= pixels < most:
            text = json.dumps({**given, "max_pixels": pixels})
            yield Change((("mm_processor_kwargs", text),), f"larger images are shrunk to {pixels / 1e6:.1f} megapixels")


def _graphs(args: EngineArgs, config: EngineConfig) -> Iterator[Change]:
    largest = max(config.cudagraph_capture_sizes, default=0)
    for size in GRAPH_SIZES:
        if not args.enforce_eager and size < largest:
            yield Change((("max_cudagraph_capture_size", size),), f"batches above {size} run without CUDA graphs")


def _tensor_parallel(args: EngineArgs, gpus: GpuPool) -> Iterator[Change]:
    others = args.pipeline_parallel_size * args.data_parallel_size
    size = args.tensor_parallel_size * 2
    while size <= gpus.count and size * others <= gpus.world_size:
        yield Change((("tensor_parallel_size", size),), f"{size} of the cards at hand instead of fewer")
        size *= 2


def _more_cards(args: EngineArgs, gpus: GpuPool) -> Iterator[Change]:
    others = args.pipeline_parallel_size * args.data_parallel_size
    size = 2
    while size <= MOST_CARDS:
        if size > gpus.count and size >= args.tensor_parallel_size * 2 and others == 1:
            yield Change((("tensor_parallel_size", size),), f"{size} cards instead of {gpus.count}", cards=size)
        size *= 2
