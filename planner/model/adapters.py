"""Which classes of vLLM take LoRA adapters, and on which of their modules beside the linear layers.

Source: vLLM 0.26.0 model_executor/models/interfaces.py:545 SupportsLoRA and the attributes of each class
(supports_lora, embedding_modules, packed_modules_mapping, is_3d_moe_weight, get_mm_mapping).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

_EMBEDDINGS = ("embed_tokens", "lm_head")
_GATED = {"qkv_proj": 3, "gate_up_proj": 2}
_QKV = {"qkv_proj": 3}
_WHOLE = {"qkv_proj": 1, "gate_up_proj": 1}
_LATENT = {"gate_up_proj": 2, "fused_qkv_a_proj": 2}


class AdapterTraits(Struct, frozen=True, kw_only=True):
    """A class that takes adapters. `embeddings`: last names of its embedding and head, where adapters reach them.

    `packed`: how many of the checkpoint's layers a fused layer holds, by its last name; a fused layer that is not
    listed gets no adapter. `fused_experts`: gate and up projection of the experts share one adapter.
    `language_model`: the prefix outside which no adapter goes (a multimodal model without tower adapters).
    `passed_over`: last names of linear layers that get none. `shares_embedding`: a tied head is the embedding itself,
    not a head with the embedding's weight, and is wrapped once more under its own name.
    """

    packed: Mapping[str, int] = field(default_factory=lambda: _GATED)
    embeddings: tuple[str, ...] = ()
    fused_experts: bool = False
    language_model: str = ""
    passed_over: tuple[str, ...] = ()
    shares_embedding: bool = False


_LLAMA = AdapterTraits(embeddings=_EMBEDDINGS)
_PLAIN = AdapterTraits()
_UNGATED = AdapterTraits(packed=_QKV, embeddings=_EMBEDDINGS)
_EXPERTS = AdapterTraits(packed=_QKV, embeddings=_EMBEDDINGS)
_PLAIN_EXPERTS = AdapterTraits(packed=_QKV)
_MEDIA = AdapterTraits(language_model="language_model")

TRAITS: dict[str, AdapterTraits] = {
    **dict.fromkeys(
        (
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "InternLM3ForCausalLM",
            "CwmForCausalLM",
            "IQuestCoderForCausalLM",
            "TeleChat3ForCausalLM",
            "GlmForCausalLM",
            "Ernie4_5ForCausalLM",
            "GraniteForCausalLM",
            "SolarForCausalLM",
            "HyperCLOVAXForCausalLM",
            "Exaone4ForCausalLM",
            "MiniCPMForCausalLM",
            "TeleChat2ForCausalLM",
            "DeciLMForCausalLM",
            "Llama4ForCausalLM",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(
        (
            "MistralForCausalLM",
            "Ministral3ForCausalLM",
            "MiMoForCausalLM",
            "Qwen2ForCausalLM",
            "SeedOssForCausalLM",
            "Glm4ForCausalLM",
            "Olmo3ForCausalLM",
            "Ernie4_5_MoeForCausalLM",
            "HunYuanDenseV1ForCausalLM",
            "HunYuanMoEV1ForCausalLM",
            "HYV3ForCausalLM",
            "GemmaForCausalLM",
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "Gemma4ForCausalLM",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("NemotronForCausalLM", "ApertusForCausalLM"), _UNGATED),
    **dict.fromkeys(("ArceeForCausalLM", "PhiForCausalLM", "OPTForCausalLM"), _PLAIN_EXPERTS),
    **dict.fromkeys(
        (
            "MixtralForCausalLM",
            "PhiMoEForCausalLM",
            "GraniteMoeForCausalLM",
            "GraniteMoeSharedForCausalLM",
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(
        (
            "OlmoeForCausalLM",
            "MiniMaxM2ForCausalLM",
            "LagunaForCausalLM",
            "FlexOlmoForCausalLM",
        ),
        _PLAIN_EXPERTS,
    ),
    **dict.fromkeys(
        (
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "GlmMoeDsaForCausalLM",
        ),
        AdapterTraits(packed=_LATENT),
    ),
    "DeepseekForCausalLM": _PLAIN,
    "Qwen2MoeForCausalLM": _PLAIN,
    "Qwen3MoeForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": AdapterTraits(embeddings=_EMBEDDINGS, shares_embedding=True),
    "Glm4MoeForCausalLM": AdapterTraits(passed_over=("gate",)),
    "Glm4MoeLiteForCausalLM": AdapterTraits(packed=_LATENT, passed_over=("gate",)),
    "AfmoeForCausalLM": AdapterTraits(passed_over=("gate",)),
    "GptOssForCausalLM": AdapterTraits(packed=_QKV, fused_experts=True),
    "Phi3ForCausalLM": AdapterTraits(packed=_WHOLE, embeddings=_EMBEDDINGS),
    "ExaoneForCausalLM": AdapterTraits(embeddings=("wte", "lm_head")),
    "InternLM2ForCausalLM": AdapterTraits(packed={"wqkv": 1, "gate_up_proj": 2}),
    "CohereForCausalLM": AdapterTraits(embeddings=("embed_tokens",)),
    "Cohere2ForCausalLM": AdapterTraits(embeddings=("embed_tokens",)),
    "ChatGLMModel": AdapterTraits(packed={"query_key_value": 1, "dense_h_to_4h": 1}),
    "ChatGLMForConditionalGeneration": AdapterTraits(packed={"query_key_value": 1, "dense_h_to_4h": 1}),
    **dict.fromkeys(
        ("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM"),
        AdapterTraits(packed={"query_key_value": 1, "gate_up_proj": 2}, passed_over=("gate",)),
    ),
    **dict.fromkeys(
        (
            "Gemma3ForConditionalGeneration",
            "Gemma4ForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen2_5OmniModel",
            "Qwen2_5OmniForConditionalGeneration",
        ),
        _MEDIA,
    ),
    **dict.fromkeys(
        ("Qwen3VLForConditionalGeneration", "Qwen3ASRForConditionalGeneration"),
        AdapterTraits(embeddings=_EMBEDDINGS, language_model="language_model", shares_embedding=True),
    ),
    "Llama4ForConditionalGeneration": AdapterTraits(embeddings=_EMBEDDINGS, language_model="language_model"),
    "Qwen3VLMoeForConditionalGeneration": AdapterTraits(
        packed=_QKV, embeddings=_EMBEDDINGS, fused_experts=True, language_model="language_model"
    ),
    "Qwen3NextForCausalLM": AdapterTraits(packed={**_GATED, "in_proj_qkvz": 1, "in_proj_ba": 1}),
    "Qwen3_5ForConditionalGeneration": AdapterTraits(
        packed={**_GATED, "in_proj_qkvz": 2, "in_proj_ba": 2}, language_model="language_model"
    ),
    "Qwen3_5MoeForConditionalGeneration": AdapterTraits(
        packed={**_GATED, "in_proj_qkvz": 2, "in_proj_ba": 2}, fused_experts=True, language_model="language_model"
    ),
    "JambaForCausalLM": AdapterTraits(packed={**_GATED, "in_proj": 1}, embeddings=_EMBEDDINGS),
    "GraniteMoeHybridForCausalLM": AdapterTraits(
        packed={"qkv_proj": 3, "conv1d": 1, "in_proj": 1, "input_linear": 1}, embeddings=_EMBEDDINGS
    ),
    "FalconH1ForCausalLM": AdapterTraits(embeddings=_EMBEDDINGS),
    "Lfm2ForCausalLM": AdapterTraits(packed={"qkv_proj": 3, "w13": 2, "in_proj": 1}, embeddings=_EMBEDDINGS),
    "Lfm2MoeForCausalLM": AdapterTraits(packed={"qkv_proj": 3, "w13": 2, "in_proj": 1}, embeddings=_EMBEDDINGS),
    **dict.fromkeys(
        ("TeleFLMForCausalLM", "Fairseq2LlamaForCausalLM", "GritLM", "MellumForCausalLM"),
        _LLAMA,
    ),
    "Jais2ForCausalLM": _UNGATED,
    "OuroForCausalLM": _PLAIN,
    "OlmoHybridForCausalLM": AdapterTraits(packed={**_GATED, "in_proj_qkvg": 4}),
    **dict.fromkeys(
        (
            "PaliGemmaForConditionalGeneration",
            "OpenCUAForConditionalGeneration",
            "DotsOCRForCausalLM",
        ),
        _MEDIA,
    ),
    **dict.fromkeys(
        (
            "LightOnOCRForConditionalGeneration",
            "KeyeForConditionalGeneration",
            "KeyeVL1_5ForConditionalGeneration",
            "Qwen3ASRRealtimeGeneration",
        ),
        AdapterTraits(embeddings=_EMBEDDINGS, language_model="language_model", shares_embedding=True),
    ),
    **dict.fromkeys(
        ("Glm4vForConditionalGeneration", "GlmOcrForConditionalGeneration"),
        AdapterTraits(packed={"qkv_proj": 3, "gate_up_proj": 1}, language_model="language_model.model"),
    ),
    "Glm4vMoeForConditionalGeneration": AdapterTraits(passed_over=("gate",), language_model="language_model.model"),
    **dict.fromkeys(
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        AdapterTraits(language_model="model.text_model"),
    ),
    "MolmoForCausalLM": AdapterTraits(packed={**_WHOLE, "merged_linear": 2}, language_model="model"),
    "LongcatFlashForCausalLM": _PLAIN,
    "Exaone4_5_ForConditionalGeneration": AdapterTraits(embeddings=_EMBEDDINGS, language_model="language_model"),
    "Lfm2VlForConditionalGeneration": AdapterTraits(
        packed={"qkv_proj": 3, "w13": 2, "in_proj": 1}, embeddings=_EMBEDDINGS, language_model="language_model"
    ),
    "NemotronHForCausalLM": AdapterTraits(packed=_QKV, embeddings=_EMBEDDINGS, passed_over=("gate",)),
}

REFUSING: dict[str, str] = {
    "StableLmForCausalLM": "StablelmForCausalLM",
    "StableLMEpochForCausalLM": "StablelmForCausalLM",
    "OrionForCausalLM": "OrionForCausalLM",
    "GPT2LMHeadModel": "GPT2LMHeadModel",
    "GPTJForCausalLM": "GPTJForCausalLM",
    "GPTNeoXForCausalLM": "GPTNeoXForCausalLM",
    "BloomForCausalLM": "BloomForCausalLM",
    "FalconForCausalLM": "FalconForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "MiMoV2FlashForCausalLM": "MiMoV2FlashForCausalLM",
    "MiMoV2ForCausalLM": "MiMoV2ForCausalLM",
    "Step3TextForCausalLM": "Step3TextForCausalLM",
    "Step3p5ForCausalLM": "Step3p5ForCausalLM",
    "DbrxForCausalLM": "DbrxForCausalLM",
    "DeepseekV4ForCausalLM": "DeepseekV4ForCausalLM",
    "LlavaNextForConditionalGeneration": "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": "LlavaOnevisionForConditionalGeneration",
    "PaddleOCRVLForConditionalGeneration": "PaddleOCRVLForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration": "Qwen2AudioForConditionalGeneration",
    "Phi3VForCausalLM": "Phi3VForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration": "MiniMaxM3SparseForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "KimiVLForConditionalGeneration": "KimiVLForConditionalGeneration",
    "KimiK25ForConditionalGeneration": "KimiK25ForConditionalGeneration",
    "MambaForCausalLM": "MambaForCausalLM",
    "FalconMambaForCausalLM": "MambaForCausalLM",
    "Mamba2ForCausalLM": "Mamba2ForCausalLM",
    "Zamba2ForCausalLM": "Zamba2ForCausalLM",
    "KimiLinearForCausalLM": "KimiLinearForCausalLM",
    "MPTForCausalLM": "MPTForCausalLM",
    "MptForCausalLM": "MPTForCausalLM",
    "MiniMaxM3SparseForCausalLM": "MiniMaxM3SparseForCausalLM",
    "Cohere2MoeForCausalLM": "Cohere2MoeForCausalLM",
    "Gemma3nForCausalLM": "Gemma3nForCausalLM",
    "Gemma3nForConditionalGeneration": "Gemma3nForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration": "Cohere2VisionForConditionalGeneration",
    "SkyworkR1VChatModel": "SkyworkR1VChatModel",
    "DeepseekVLV2ForCausalLM": "DeepseekVLV2ForCausalLM",
    "AriaForConditionalGeneration": "AriaForConditionalGeneration",
    "Step3VLForConditionalGeneration": "Step3VLForConditionalGeneration",
    "StepVLForConditionalGeneration": "StepVLForConditionalGeneration",
    "Step3p7ForConditionalGeneration": "Step3p7ForConditionalGeneration",
    "Ovis": "Ovis",
    "Ovis2_5": "Ovis2_5",
    "Ovis2_6ForCausalLM": "Ovis2_5",
    "Ovis2_6_MoeForCausalLM": "Ovis2_5",
    "BailingMoeV2_5ForCausalLM": "BailingMoeV25ForCausalLM",
    "IQuestLoopCoderForCausalLM": "IQuestLoopCoderForCausalLM",
    "Phi4ForCausalLMV": "Phi4ForCausalLMV",
    "RForConditionalGeneration": "RForConditionalGeneration",
    "BeeForConditionalGeneration": "BeeForConditionalGeneration",
    "LlavaOnevision2ForConditionalGeneration": "LlavaOnevision2ForConditionalGeneration",
    "MiDashengLMModel": "MiDashengLMModel",
    "NemotronH_Nano_VL_V2": "NemotronH_Nano_VL_V2",
    "NemotronH_Nano_Omni_Reasoning_V3": "NemotronH_Nano_VL_V2",
    "NemotronH_Super_Omni_Reasoning_V3": "NemotronH_Nano_VL_V2",
}
"""Architectures whose class takes no adapters, with the class's name."""

FAILING: dict[str, str] = {
    "ExaoneMoEForCausalLM": "'LoRAConfig' object has no attribute 'lora_extra_vocab_size'",
}
"""Architectures whose class fails to be built with adapters, with the error."""
