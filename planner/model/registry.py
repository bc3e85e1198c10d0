"""Which file describes which architecture. Imported on demand: one model needs one family."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import Architecture
from planner.model.config_view import ConfigView

_HOME = "planner.model.architectures"

ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "llama:llama",
    "LLaMAForCausalLM": "llama:llama",
    "InternLM3ForCausalLM": "llama:llama",
    "CwmForCausalLM": "llama:llama",
    "IQuestCoderForCausalLM": "llama:llama",
    "TeleChat3ForCausalLM": "llama:llama",
    "MistralForCausalLM": "llama:mistral",
    "Ministral3ForCausalLM": "llama:mistral",
    "Phi3ForCausalLM": "llama:phi3",
    "GlmForCausalLM": "llama:glm",
    "Ernie4_5ForCausalLM": "llama:ernie4_5",
    "MiMoForCausalLM": "llama:qwen2",
    "Qwen2ForCausalLM": "llama:qwen2",
    "Qwen3ForCausalLM": "llama:qwen3",
    "GraniteForCausalLM": "dense:granite",
    "SolarForCausalLM": "dense:granite",
    "SeedOssForCausalLM": "dense:seed_oss",
    "Glm4ForCausalLM": "dense:glm4",
    "Exaone4ForCausalLM": "dense:exaone4",
    "ExaoneForCausalLM": "dense:exaone",
    "Olmo3ForCausalLM": "dense:olmo3",
    "StableLmForCausalLM": "dense:stablelm",
    "StableLMEpochForCausalLM": "dense:stablelm",
    "OrionForCausalLM": "dense:orion",
    "MiniCPMForCausalLM": "dense:minicpm",
    "InternLM2ForCausalLM": "dense:internlm2",
    "TeleChat2ForCausalLM": "dense:telechat2",
    "CohereForCausalLM": "dense:cohere",
    "Cohere2ForCausalLM": "dense:cohere",
    "ChatGLMModel": "chatglm:chatglm",
    "ChatGLMForConditionalGeneration": "chatglm:chatglm",
    "DeciLMForCausalLM": "nemotron_nas:deci_lm",
    "NemotronForCausalLM": "gpt:nemotron",
    "ArceeForCausalLM": "gpt:arcee",
    "ApertusForCausalLM": "gpt:apertus",
    "PhiForCausalLM": "gpt:phi",
    "GPT2LMHeadModel": "gpt:gpt2",
    "GPTJForCausalLM": "gpt:gpt_j",
    "GPTNeoXForCausalLM": "gpt:gpt_neox",
    "BloomForCausalLM": "gpt:bloom",
    "FalconForCausalLM": "gpt:falcon",
    "RWForCausalLM": "gpt:falcon",
    "OPTForCausalLM": "gpt:opt",
    "MixtralForCausalLM": "moe:mixtral",
    "PhiMoEForCausalLM": "moe:phimoe",
    "GraniteMoeForCausalLM": "moe:granite_moe",
    "GraniteMoeSharedForCausalLM": "moe:granite_moe_shared",
    "Qwen2MoeForCausalLM": "moe:qwen2_moe",
    "Qwen3MoeForCausalLM": "moe:qwen3_moe",
    "OlmoeForCausalLM": "moe:olmoe",
    "Glm4MoeForCausalLM": "shared_experts:glm4_moe",
    "MiniMaxM2ForCausalLM": "shared_experts:minimax_m2",
    "Ernie4_5_MoeForCausalLM": "shared_experts:ernie4_5_moe",
    "ExaoneMoEForCausalLM": "shared_experts:exaone_moe",
    "HunYuanDenseV1ForCausalLM": "shared_experts:hunyuan",
    "HunYuanMoEV1ForCausalLM": "shared_experts:hunyuan",
    "GptOssForCausalLM": "gpt_oss:gpt_oss",
    "Llama4ForCausalLM": "llama4:llama4",
    "LagunaForCausalLM": "laguna:laguna",
    "MiMoV2FlashForCausalLM": "mimo_v2:mimo_v2_flash",
    "MiMoV2ForCausalLM": "mimo_v2:mimo_v2",
    "Step3TextForCausalLM": "step:step3_text",
    "Step3p5ForCausalLM": "step:step3p5",
    "DeepseekForCausalLM": "mla:deepseek",
    "DeepseekV2ForCausalLM": "mla:deepseek",
    "DeepseekV3ForCausalLM": "mla:deepseek",
    "DeepseekV32ForCausalLM": "mla:deepseek",
    "GlmMoeDsaForCausalLM": "mla:deepseek",
    "Glm4MoeLiteForCausalLM": "mla:glm4_moe_lite",
    "MiniCPM3ForCausalLM": "mla:minicpm3",
    "LongcatFlashForCausalLM": "mla:longcat_flash",
    "MotifForCausalLM": "dropped:dropped",
    "Phi3SmallForCausalLM": "dropped:dropped",
    "Phi4FlashForCausalLM": "dropped:dropped",
    "JAISLMHeadModel": "dropped:dropped",
    "InternLM2VEForCausalLM": "dropped:dropped",
    "QWenLMHeadModel": "dropped:dropped",
    "QwenVLForConditionalGeneration": "dropped:dropped",
    "InternLMForCausalLM": "dropped:dropped",
    "DonutForConditionalGeneration": "dropped:dropped",
    "XverseForCausalLM": "dropped:dropped",
    "MiniMaxText01ForCausalLM": "dropped:dropped",
    "MiniMaxM1ForCausalLM": "dropped:dropped",
    "MiniMaxVL01ForConditionalGeneration": "dropped:dropped",
    "BaiChuanForCausalLM": "dropped:dropped",
    "BaichuanForCausalLM": "dropped:dropped",
    "AquilaModel": "dropped:dropped",
    "AquilaForCausalLM": "dropped:dropped",
    "Grok1ModelForCausalLM": "dropped:dropped",
    "Grok1ForCausalLM": "dropped:dropped",
    "TarsierForConditionalGeneration": "dropped:dropped",
    "Tarsier2ForConditionalGeneration": "dropped:dropped",
    "MantisForConditionalGeneration": "dropped:dropped",
    "TeleChatForCausalLM": "dropped:dropped",
    "GemmaForCausalLM": "gemma:gemma",
    "Gemma2ForCausalLM": "gemma:gemma2",
    "Gemma3ForCausalLM": "gemma:gemma3",
    "Gemma3ForConditionalGeneration": "gemma:gemma3_mm",
    "LlavaForConditionalGeneration": "llava:llava",
    "LlavaNextForConditionalGeneration": "llava:llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava:llava_onevision",
    "Mistral3ForConditionalGeneration": "llava:mistral3",
    "InternVLChatModel": "internvl:internvl_chat",
    "InternVLForConditionalGeneration": "internvl:internvl",
    "InternS1ForConditionalGeneration": "internvl:internvl",
    "MiniCPMV": "minicpm_v:minicpm_v",
    "PaddleOCRVLForConditionalGeneration": "paddleocr_vl:paddleocr_vl",
    "Qwen2AudioForConditionalGeneration": "audio:qwen2_audio",
    "Qwen2_5OmniModel": "audio:qwen2_5_omni",
    "Qwen2_5OmniForConditionalGeneration": "audio:qwen2_5_omni",
    "Qwen3ASRForConditionalGeneration": "audio:qwen3_asr",
    "Qwen2VLForConditionalGeneration": "qwen_vl:qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl:qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen_vl:qwen3_vl",
}
"""vLLM's registry name -> "module:function" under planner.model.architectures."""


def describe(architecture: str) -> Callable[[ConfigView], Architecture]:
    """The function that turns a config into modules. Raises UnsupportedError for an architecture not known here."""
    try:
        module, function = ARCHITECTURES[architecture].split(":")
    except KeyError:
        close = difflib.get_close_matches(architecture, ARCHITECTURES, 1)
        hint = f" (closest known: {close[0]})" if close else ""
        raise UnsupportedError("architecture", f"architecture {architecture} is not supported by this planner{hint}") from None
    found: Callable[[ConfigView], Architecture] = getattr(import_module(f"{_HOME}.{module}"), function)
    return found
