"""A decoder from its parts: what its layers hold is given by two functions, the rest by names and a few switches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from planner.errors import InputError
from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, norm
from planner.model.config_view import ConfigView
from planner.model.modules import AttentionKind, LMHead, Module, PackedNames, Placement, VocabEmbedding
from planner.model.spec import TextDims

LayerPart = Callable[[str, int], list[Module]]
"""(prefix, layer index) -> the modules of one part of that layer."""

SLIDING = "sliding_attention"


class Names(Struct, frozen=True, kw_only=True):
    """vLLM's attribute names of one model class. `head` is below the model when it begins with a dot."""

    model: str = "model"
    embed: str = "embed_tokens"
    layers: str = "layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    final_norm: str = "norm"
    head: str = "lm_head"


LLAMA_NAMES = Names()


def assemble(
    dims: TextDims,
    *,
    attention: LayerPart,
    feed_forward: LayerPart,
    tied: bool,
    prefix: str = "",
    names: Names = LLAMA_NAMES,
    norm_bias: bool = False,
    every_stage: bool = False,
    head_bias: bool = False,
    head_quantizable: bool = True,
    fused: Mapping[str, tuple[str, ...]] = LLAMA_FUSED,
    prefixes: tuple[tuple[str, str], ...] = (),
    extra: Sequence[Module] = (),
    num_experts: int = 0,
    use_mla: bool = False,
    supports_pp: bool = True,
) -> Architecture:
    """Embedding, layers, final norm and head.

    `every_stage`: the class builds embedding, final norm and head on each pipeline stage (no PPMissingLayer).
    `prefix` is "language_model." inside a multimodal model.
    """
    base = f"{prefix}{names.model}" if names.model else prefix.removesuffix(".")
    first: Placement = "every" if every_stage else "first"
    last: Placement = "every" if every_stage else "last"
    embed = f"{base}.{names.embed}"
    modules: list[Module] = [
        VocabEmbedding(name=embed, placement=first, num_embeddings=dims.vocab_size, hidden_size=dims.hidden_size)
    ]
    for layer in range(dims.num_hidden_layers):
        at = f"{base}.{names.layers}.{layer}"
        modules += attention(f"{at}.{names.attention}", layer)
        modules += feed_forward(f"{at}.{names.mlp}", layer)
        for name in names.norms:
            modules += norm(f"{at}.{name}", dims.hidden_size, layer, bias=norm_bias)
    modules += extra
    if names.final_norm:
        modules += norm(f"{base}.{names.final_norm}", dims.hidden_size, last, bias=norm_bias)
    modules.append(
        LMHead(
            name=f"{base}{names.head}" if names.head.startswith(".") else f"{prefix}{names.head}",
            placement=last,
            num_embeddings=dims.vocab_size,
            hidden_size=dims.hidden_size,
            bias=head_bias,
            tied_to=embed if tied else None,
            quantizable=head_quantizable,
        )
    )
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(fused=dict(fused), prefixes=prefixes),
        tie_word_embeddings=tied,
        is_moe=num_experts > 0,
        num_experts=num_experts,
        use_mla=use_mla,
        supports_pp=supports_pp,
    )


class Windows:
    """The sliding window of each layer.

    vLLM gives a layer the window of its entry in `layer_types` where the class reads them (`per_layer`), and the
    model-level window where it does not, unless the types are mixed (engine/arg_utils.py:1888, attention.py:261).
    `types` are the layer types that transformers' configuration class derives where the file names none.
    """

    def __init__(self, config: ConfigView, *, types: Sequence[str] | None = None, per_layer: bool = True) -> None:
        given = config.explicit("layer_types")
        if given is not None and (not isinstance(given, list) or not all(isinstance(item, str) for item in given)):
            raise InputError(f"{config.where}: layer_types must be a list of texts")
        self.types: Sequence[str] = given if given is not None else (types or ())
        self.per_layer = per_layer
        window = config.explicit("sliding_window") if window_in_use(config) else None
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
            raise InputError(f"{config.where}: sliding_window must be a whole number, found {window!r}")
        self.window: int | None = window or None

    def of(self, layer: int) -> tuple[AttentionKind, int | None]:
        """Kind of cache and window of one layer."""
        if self.per_layer and self.types:
            if layer >= len(self.types):
                raise InputError(f"config.json: layer_types has {len(self.types)} entries, none for layer {layer}")
            if self.types[layer] == SLIDING:
                return self._windowed()
        if len(set(self.types)) <= 1:
            return self._windowed()
        return "full_attention", None

    def _windowed(self) -> tuple[AttentionKind, int | None]:
        return ("full_attention", None) if self.window is None else ("sliding_window", self.window)


def window_in_use(config: ConfigView) -> bool:
    """transformers drops sliding_window where use_sliding_window is false (Qwen2 and its kin)."""
    return config.raw("use_sliding_window") is not False


def alternate(num_layers: int, period: int, last: str = "full_attention") -> list[str]:
    """Sliding layers with every `period`-th one `last` (transformers' default layer_types)."""
    return [last if period and (layer + 1) % period == 0 else SLIDING for layer in range(num_layers)]
