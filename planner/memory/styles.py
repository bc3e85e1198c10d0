"""How each model class writes its forward pass, as far as it decides which tensors outlive an operation.

Source: vLLM 0.26.0 model_executor/models/<file>.py, the forward methods of the MLP and the decoder layer.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Sums = Literal["before", "after", "beside"]


class Style(Struct, frozen=True):
    """`keeps_gate_up`: the MLP keeps the fused projection in a variable of its own until it returns (Qwen2MLP), instead
    of overwriting it (LlamaMLP). `native_norm`: GemmaRMSNorm, which PyTorch runs in float32 and not in place.
    `sandwich`: norms after attention and MLP as well. `scaled_embedding`: embeddings are multiplied by a number.
    `keeps_input`: the attention's input stays in a dictionary of arguments until the layer returns. `sums`: the layer
    adds its residual itself, with norms before its blocks, after them, or one before both (planner.memory.sums);
    `returns_residual`: and gives it to the model's loop beside its output. `gives_output`: the layer makes the tensor
    that its mixer writes to. `wide_qk_norm`: query and key are normed as PyTorch operations in float32."""

    keeps_gate_up: bool = True
    native_norm: bool = False
    sandwich: bool = False
    scaled_embedding: bool = False
    keeps_input: bool = False
    sums: Sums | None = None
    returns_residual: bool = False
    gives_output: bool = False
    wide_qk_norm: bool = False

    @property
    def pieces(self) -> bool:
        """Whether the compiled lifetimes are known: a pre-norm decoder."""
        return not self.sandwich and self.sums != "after"


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
        "AquilaForCausalLM",
        "AquilaModel",
        "PixtralForConditionalGeneration",
        "Ernie4_5ForCausalLM",
        "Idefics3ForConditionalGeneration",
        "JambaForCausalLM",
        "SmolVLMForConditionalGeneration",
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
        "Gemma3nForCausalLM",
        "Gemma3nForConditionalGeneration",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Glm4ForCausalLM",
        "Olmo2ForCausalLM",
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
_SUMS: dict[str, Sums] = {
    "GraniteForCausalLM": "before",
    "GraniteMoeForCausalLM": "before",
    "GraniteMoeSharedForCausalLM": "before",
    "GraniteMoeHybridForCausalLM": "before",
    "PhiMoEForCausalLM": "before",
    "FalconH1ForCausalLM": "before",
    "MiniCPMForCausalLM": "before",
    "MiniCPM3ForCausalLM": "before",
    "StableLmForCausalLM": "before",
    "StableLMEpochForCausalLM": "before",
    "HyperCLOVAXForCausalLM": "before",
    "Olmo3ForCausalLM": "after",
    "FlexOlmoForCausalLM": "after",
    "Exaone4ForCausalLM": "after",
    "CohereForCausalLM": "beside",
    "Cohere2ForCausalLM": "beside",
    "Cohere2MoeForCausalLM": "beside",
    "PhiForCausalLM": "beside",
}
_RETURNS_RESIDUAL = frozenset(
    {
        "GraniteMoeHybridForCausalLM",
        "PhiMoEForCausalLM",
        "StableLmForCausalLM",
        "StableLMEpochForCausalLM",
        "HyperCLOVAXForCausalLM",
        "Exaone4ForCausalLM",
        "CohereForCausalLM",
        "Cohere2ForCausalLM",
        "Cohere2MoeForCausalLM",
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
        scaled_embedding=architecture.startswith("Gemma"),
        keeps_input=architecture in ("Glm4MoeLiteForCausalLM", "AXK1ForCausalLM"),
        sums=_SUMS.get(architecture),
        returns_residual=architecture in _RETURNS_RESIDUAL,
        gives_output=architecture == "KimiLinearForCausalLM",
        wide_qk_norm=architecture == "MiniMaxM2ForCausalLM",
    )
