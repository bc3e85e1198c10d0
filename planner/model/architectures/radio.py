"""C-RADIO, the tower of Nemotron Nano VL, and Parakeet, its encoder of sound.

Source: vLLM 0.26.0 model_executor/models/{radio,intern_vit,parakeet}.py, transformers_utils/configs/radio.py;
transformers 5.14.1 models/parakeet/modeling_parakeet.py.
"""

from __future__ import annotations

from math import log2

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import norm, plain_mlp
from planner.model.architectures.granite_speech import batch_norm
from planner.model.architectures.vision_blocks import fused_qkv, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, Module, Parameter, QKVLinear

_SIZES = {
    "vit_small_patch16_224": (384, 12, 6, 1536),
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
}
"""Width, layers, heads and MLP width of the models that RADIO names (configs/radio.py:13)."""


def radio_sizes(vision: ConfigView) -> tuple[int, int, int, int]:
    name = vision.section("args").text("model", "")
    if name not in _SIZES:
        raise UnsupportedError("vision_config", f"{vision.where}: the RADIO model {name!r} is not known")
    return _SIZES[name]


def radio(vision: ConfigView, prefix: str) -> list[Module]:
    """RadioModel: tokens of each teacher and registers, a position table for the largest image, unquantized layers."""
    width, layers, heads, inner = radio_sizes(vision)
    args, patch = vision.section("args"), vision.size("patch_size", 16)
    pixels, frames = 3 * patch**2, vision.size("video_temporal_patch_size", 1)
    base = f"{prefix}.model.patch_generator"
    modules = weight(f"{base}.embedder", width, pixels)
    if frames > 1:
        modules += weight(f"{base}.video_embedder", width, frames * pixels)
    side = round(args.size("cpe_max_size", 2048) / patch)
    modules.append(Parameter(name=f"{base}.pos_embed", shape=(1, side**2, width)))
    modules.append(Parameter(name=f"{base}.cls_token.token", shape=(_prefix_tokens(args), width)))
    for layer in range(layers):
        at = f"{prefix}.model.encoder.layers.{layer}"
        parts: list[Module] = [
            fused_qkv(f"{at}.attn.qkv", width, heads, width // heads, bias=args.flag("qkv_bias", True), shard_names=()),
            row(f"{at}.attn.proj", width, width),
            *plain_mlp(f"{at}.mlp", "every", width, inner),
        ]
        modules += [_unquantized(part, heads) for part in parts]
        for name in ("norm1", "norm2"):
            modules += norm(f"{at}.{name}", width, "every", bias=True)
        modules += [Parameter(name=f"{at}.{name}", shape=(width,)) for name in ("ls1", "ls2")]
    used = sum(1 for teacher in _teachers(args) if teacher.get("use_summary", True))
    if used:
        modules.append(Buffer(name=f"{prefix}.summary_idxs", shape=(used,), dtype="int64"))
    return modules


def _unquantized(part: Module, heads: int) -> Module:
    """Attention is whole on each rank where its heads do not divide (intern_vit.py:170)."""
    if isinstance(part, QKVLinear) or (isinstance(part, Linear) and ".attn." in part.name):
        return replace(part, quantizable=False, whole_unless_divides=heads)
    return replace(part, quantizable=False) if isinstance(part, Linear) else part


def _teachers(args: ConfigView) -> list[dict[str, object]]:
    given = args.raw("teachers") or []
    if not isinstance(given, list) or not all(isinstance(teacher, dict) and "name" in teacher for teacher in given):
        raise UnsupportedError("vision_config", f"{args.where}: teachers must be a list of objects with names")
    return given


def _prefix_tokens(args: ConfigView) -> int:
    """Class tokens, one for each teacher where the file asks so, filled up with registers to a multiple."""
    tokens = len({str(teacher["name"]) for teacher in _teachers(args)}) if args.flag("cls_token_per_teacher") else 1
    multiple = args.optional_size("register_multiple")
    return tokens + (0 if multiple is None else multiple - tokens % multiple)


def parakeet(sound: ConfigView, prefix: str) -> list[Module]:
    """transformers' ParakeetEncoder, whole on each rank; its float buffers take the model's dtype (parakeet.py:64)."""
    width, inner = sound.size("hidden_size", 1024), sound.size("intermediate_size", 4096)
    heads, kernel = sound.size("num_attention_heads", 8), sound.size("conv_kernel_size", 9)
    bias = sound.flag("convolution_bias", True)
    modules = _subsampling(sound, f"{prefix}.subsampling", width)
    modules.append(Buffer(name=f"{prefix}.encode_positions.inv_freq", shape=(width // 2,)))
    for layer in range(sound.layers()):
        at = f"{prefix}.layers.{layer}"
        for name in ("feed_forward1", "feed_forward2"):
            modules += weight(f"{at}.{name}.linear1", inner, width) + weight(f"{at}.{name}.linear2", width, inner)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "relative_k_proj"):
            modules += weight(f"{at}.self_attn.{name}", width, width)
        modules += [
            Parameter(name=f"{at}.self_attn.{name}", shape=(heads, width // heads)) for name in ("bias_u", "bias_v")
        ]
        modules += weight(f"{at}.conv.pointwise_conv1", 2 * width, width, 1, bias=bias)
        modules += weight(f"{at}.conv.depthwise_conv", width, 1, kernel, bias=bias)
        modules += batch_norm(f"{at}.conv.norm", width)
        modules += weight(f"{at}.conv.pointwise_conv2", width, width, 1, bias=bias)
        for name in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            modules += norm(f"{at}.norm_{name}", width, "every", bias=True)
    return modules


def _subsampling(sound: ConfigView, at: str, width: int) -> list[Module]:
    """One strided convolution, then pairs of a depthwise and a pointwise one, with activations between."""
    kernel, channels = sound.size("subsampling_conv_kernel_size", 3), sound.size("subsampling_conv_channels", 256)
    steps = int(log2(sound.size("subsampling_factor", 8)))
    modules = weight(f"{at}.layers.0", channels, 1, kernel, kernel, bias=True)
    for step in range(1, steps):
        modules += weight(f"{at}.layers.{3 * step - 1}", channels, 1, kernel, kernel, bias=True)
        modules += weight(f"{at}.layers.{3 * step}", channels, channels, 1, 1, bias=True)
    bins = sound.size("num_mel_bins", 80) // sound.size("subsampling_conv_stride", 2) ** steps
    return modules + weight(f"{at}.linear", width, channels * bins, bias=True)
