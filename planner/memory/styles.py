"""How each model class writes its forward pass, as far as it decides which tensors outlive an operation.

Source: vLLM 0.26.0 model_executor/models/<file>.py, the forward methods of the MLP and the decoder layer.
"""

from __future__ import annotations

from msgspec import Struct


class Style(Struct, frozen=True):
    """`keeps_gate_up`: the MLP keeps the fused projection in a variable of its own until it returns (Qwen2MLP), instead
    of overwriting it (LlamaMLP). `native_norm`: GemmaRMSNorm, which PyTorch runs in float32 and not in place.
    `sandwich`: norms after attention and MLP as well. `scaled_embedding`: embeddings are multiplied by a number.
    `keeps_input`: the attention's input stays in a dictionary of arguments until the layer returns."""

    keeps_gate_up: bool = True
    native_norm: bool = False
    sandwich: bool = False
    scaled_embedding: bool = False
    keeps_input: bool = False

    @property
    def pieces(self) -> bool:
        """Whether the compiled lifetimes are known: a pre-norm decoder."""
        return not self.sandwich


_REBINDS = frozenset(
    {
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "CwmForCausalLM",
        "InternLM3ForCausalLM",
        "IQuestCoderForCausalLM",
        "TeleChat3ForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "GlmForCausalLM",
        "Glm4ForCausalLM",
        "DeciLMForCausalLM",
        "NemotronNASForCausalLM",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "FalconH1ForCausalLM",
        "BailingMoeForCausalLM",
        "Step1ForCausalLM",
        "MllamaForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "AquilaForCausalLM",
        "AquilaModel",
        "Mistral3ForConditionalGeneration",
        "PixtralForConditionalGeneration",
        "Ernie4_5ForCausalLM",
        "PaddleOCRVLForConditionalGeneration",
    }
)
_GEMMA_SANDWICH = frozenset(
    {
        "Rnj1ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
    }
)
_SANDWICH = frozenset(
    {
        "AfmoeForCausalLM",
        "AXK1ForCausalLM",
        "Exaone4ForCausalLM",
        "FlexOlmoForCausalLM",
        "Gemma3nForCausalLM",
        "Gemma3nForConditionalGeneration",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Glm4ForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "OlmoHybridForCausalLM",
        "PanguEmbeddedForCausalLM",
        "PanguUltraMoEForCausalLM",
    }
)
_GEMMA_NORM = frozenset(
    {
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
        "Step3p5ForCausalLM",
        "GemmaForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    }
)


def style_of(architecture: str) -> Style:
    """The style of a class. One that no set names writes Qwen2's, on purpose: of the plain decoders it keeps the most
    alive, so that the peak of a class not read here is too high by at most a gate and up projection, never too low."""
    if architecture in _GEMMA_SANDWICH:
        return Style(native_norm=True, sandwich=True, scaled_embedding=True)
    return Style(
        keeps_gate_up=architecture not in _REBINDS,
        native_norm=architecture in _GEMMA_NORM,
        sandwich=architecture in _SANDWICH,
        scaled_embedding=architecture.startswith(("Gemma", "Granite")),
        keeps_input=architecture in ("Glm4MoeLiteForCausalLM", "AXK1ForCausalLM"),
    )
