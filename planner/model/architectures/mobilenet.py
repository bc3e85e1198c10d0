"""MobileNetV5, the vision tower of Gemma 3n: timm's encoder, whole on each rank and never quantized.

Source: timm 1.0.31 models/mobilenetv5.py _gen_mobilenet_v5, _efficientnet_builder.py; transformers 5.14.1 TimmWrapper.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from planner.model.architectures.blocks import norm
from planner.model.architectures.vision_blocks import weight
from planner.model.modules import Module, Parameter

_STEM, _FIRST, _CHANNELS = 64, 3, 3
_FUSION_WIDTH, _FUSION_EXPANSION = 2048, 2


class Residual(Struct, frozen=True):
    """A convolution that widens, and one that narrows ("er" in timm's notation)."""

    width: int
    expansion: int


class Inverted(Struct, frozen=True):
    """A universal inverted bottleneck: depthwise kernels of `start` and `middle` (0: none) around two projections."""

    width: int
    expansion: int
    start: int = 0
    middle: int = 0


class Attending(Struct, frozen=True):
    """Multi-query attention; keys and values are first halved in size where `stride` is 2."""

    width: int
    heads: int
    head_size: int
    stride: int


Block = Residual | Inverted | Attending


def _stages() -> tuple[tuple[Block, ...], ...]:
    third: list[Block] = [Attending(640, 12, 64, 2), Inverted(640, 2)] * 14
    fourth: list[Block] = [Attending(1280, 16, 96, 1), Inverted(1280, 2)] * 19
    return (
        (Residual(128, 4),) * 3,
        (Inverted(256, 6, 3, 5), *(Inverted(256, 4, kernel) for kernel in (5, 3, 5, 3))),
        (Inverted(640, 6, 5, 5), *(Inverted(640, 4, 5) for _ in range(7)), Inverted(640, 1), *third),
        (Inverted(1280, 6, 5, 5), *fourth),
    )


ENCODERS = {"mobilenetv5_300m_enc": _stages}
"""timm's names and their stages."""


def mobilenet(prefix: str, architecture: str) -> list[Module]:
    """The tower `architecture` names, with the fusion of its last two stages. KeyError for a name not in ENCODERS."""
    stages = ENCODERS[architecture]()
    modules = weight(f"{prefix}.conv_stem.conv", _STEM, _CHANNELS, _FIRST, _FIRST, bias=True)
    modules += norm(f"{prefix}.conv_stem.bn", _STEM, "every")
    width = _STEM
    for stage, blocks in enumerate(stages):
        for index, block in enumerate(blocks):
            modules += _block(f"{prefix}.blocks.{stage}.{index}", width, block)
            width = block.width
    fused = sum(blocks[-1].width for blocks in stages[-2:])
    modules += _pointwise(f"{prefix}.msfa.ffn", fused, _FUSION_EXPANSION * fused, _FUSION_WIDTH)
    return modules + norm(f"{prefix}.msfa.norm", _FUSION_WIDTH, "every")


def _block(at: str, width: int, block: Block) -> Iterator[Module]:
    if isinstance(block, Residual):
        inner = width * block.expansion
        yield from weight(f"{at}.conv_exp", inner, width, _FIRST, _FIRST)
        yield from norm(f"{at}.bn1", inner, "every")
        yield from weight(f"{at}.conv_pwl", block.width, inner, 1, 1)
        yield from norm(f"{at}.bn2", block.width, "every")
        return
    if isinstance(block, Inverted):
        yield from _inverted(at, width, block)
    else:
        yield from _attending(at, width, block)
    yield Parameter(name=f"{at}.layer_scale.gamma", shape=(block.width,))


def _inverted(at: str, width: int, block: Inverted) -> Iterator[Module]:
    inner = width * block.expansion
    if block.start:
        yield from _depthwise(f"{at}.dw_start", width, block.start)
    if block.middle:
        yield from _depthwise(f"{at}.dw_mid", inner, block.middle)
    yield from _pointwise(at, width, inner, block.width)


def _attending(at: str, width: int, block: Attending) -> Iterator[Module]:
    queries = block.heads * block.head_size
    yield from norm(f"{at}.norm", width, "every")
    yield from weight(f"{at}.attn.query.proj", queries, width, 1, 1)
    for name in ("key", "value"):
        if block.stride > 1:
            yield from weight(f"{at}.attn.{name}.down_conv", width, 1, _FIRST, _FIRST)
            yield from norm(f"{at}.attn.{name}.norm", width, "every")
        yield from weight(f"{at}.attn.{name}.proj", block.head_size, width, 1, 1)
    yield from weight(f"{at}.attn.output.proj", block.width, queries, 1, 1)


def _depthwise(at: str, width: int, kernel: int) -> list[Module]:
    return weight(f"{at}.conv", width, 1, kernel, kernel) + norm(f"{at}.bn", width, "every")


def _pointwise(at: str, width: int, inner: int, output: int) -> list[Module]:
    """1x1 convolutions up and down, each with its norm."""
    modules = weight(f"{at}.pw_exp.conv", inner, width, 1, 1) + norm(f"{at}.pw_exp.bn", inner, "every")
    return modules + weight(f"{at}.pw_proj.conv", output, inner, 1, 1) + norm(f"{at}.pw_proj.bn", output, "every")
