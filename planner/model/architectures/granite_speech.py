"""Granite Speech: a Conformer with a second head in its middle, a Q-Former over windows, a Granite decoder.

Source: vLLM 0.26.0 model_executor/models/{granite_speech,granite_speech_plus}.py.
"""

from __future__ import annotations

from planner.model.architectures.blip2 import qformer
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import VisionSpec


def granite_speech(config: ConfigView) -> Architecture:
    """GraniteSpeechForConditionalGeneration and GraniteSpeechPlusForConditionalGeneration, one sound a prompt.

    The blocks get no quantization config, the two linears around the middle head do. Plus keeps some layers' states
    while it runs, and has the same weights.
    """
    text = language_model(text_view(config, "granite"))
    encoder = config.section("encoder_config", "granite_speech_encoder")
    former = config.section("projector_config", "blip_2_qformer")
    width, queries = former.size("hidden_size"), config.size("window_size") // config.size("downsample_rate")
    modules = _conformer(encoder, "encoder")
    modules.append(Parameter(name="projector.query", shape=(1, queries, width)))
    modules += qformer(former, "projector.qformer")
    modules += weight("projector.linear", text.text.hidden_size, width, bias=True)
    spec = VisionSpec(family="GraniteSpeech", modalities=("audio",), limits=(("audio", 1),))
    return multimodal(text, (), after=as_tower(modules, "audio_tower"), vision=spec)


def _conformer(encoder: ConfigView, prefix: str) -> list[Module]:
    width, output = encoder.size("hidden_dim"), encoder.size("output_dim")
    modules = weight(f"{prefix}.input_linear", width, encoder.size("input_dim"), bias=True)
    for layer in range(encoder.layers("num_layers")):
        modules += _block(encoder, f"{prefix}.layers.{layer}", width)
    return [*modules, column(f"{prefix}.out", width, output), row(f"{prefix}.out_mid", output, width)]


def _block(encoder: ConfigView, at: str, width: int) -> list[Module]:
    heads = encoder.size("num_heads")
    head = encoder.optional_size("dim_head") or width // heads
    inner, rows = width * encoder.size("feedforward_mult"), 2 * encoder.size("max_pos_emb") + 1
    wide = width * encoder.size("conv_expansion_factor")
    modules: list[Module] = []
    for name in ("ff1", "ff2"):
        modules += norm(f"{at}.{name}.pre_norm", width, "every", bias=True)
        modules += [
            column(f"{at}.{name}.up_proj", width, inner, quantizable=False),
            row(f"{at}.{name}.down_proj", inner, width, quantizable=False),
        ]
    modules += norm(f"{at}.attn.pre_norm", width, "every", bias=True)
    modules += weight(f"{at}.attn.to_q", heads * head, width) + weight(f"{at}.attn.to_kv", 2 * heads * head, width)
    modules += weight(f"{at}.attn.to_out", width, heads * head, bias=True) + weight(
        f"{at}.attn.rel_pos_emb", rows, head
    )
    modules += norm(f"{at}.conv.norm", width, "every", bias=True)
    modules += weight(f"{at}.conv.up_conv", 2 * wide, width, 1, bias=True)
    modules += weight(f"{at}.conv.depth_conv.conv", wide, 1, encoder.size("conv_kernel_size"))
    modules += batch_norm(f"{at}.conv.batch_norm", wide)
    modules += weight(f"{at}.conv.down_conv", width, wide, 1, bias=True)
    return modules + norm(f"{at}.post_norm", width, "every", bias=True)


def batch_norm(name: str, width: int) -> list[Module]:
    """nn.BatchNorm1d: scale and shift, and the running statistics with their count."""
    return [
        *norm(name, width, "every", bias=True),
        Buffer(name=f"{name}.running_mean", shape=(width,)),
        Buffer(name=f"{name}.running_var", shape=(width,)),
        Buffer(name=f"{name}.num_batches_tracked", shape=(), dtype="int64"),
    ]
