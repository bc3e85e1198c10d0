"""Architectures that vLLM no longer serves, each with the last version that did.

A class that the transformers library still has is not among them: vLLM may serve it through transformers' own code.

Source: vLLM 0.26.0 and 0.33.0 model_executor/models/registry.py _PREVIOUSLY_SUPPORTED_MODELS.
"""

from __future__ import annotations

REMOVED_BY_0_26: tuple[tuple[str, str], ...] = (
    ("MotifForCausalLM", "0.10.2"),
    ("Phi3SmallForCausalLM", "0.9.2"),
    ("Phi4FlashForCausalLM", "0.10.2"),
    ("JAISLMHeadModel", "0.22.0"),
    ("InternLM2VEForCausalLM", "0.23.0"),
    ("QWenLMHeadModel", "0.23.0"),
    ("QwenVLForConditionalGeneration", "0.23.0"),
    ("InternLMForCausalLM", "0.23.0"),
    ("DonutForConditionalGeneration", "0.10.2"),
    ("XverseForCausalLM", "0.23.0"),
    ("MiniMaxText01ForCausalLM", "0.23.0"),
    ("MiniMaxM1ForCausalLM", "0.23.0"),
    ("MiniMaxVL01ForConditionalGeneration", "0.23.0"),
    ("BaiChuanForCausalLM", "0.23.0"),
    ("BaichuanForCausalLM", "0.23.0"),
    ("AquilaModel", "0.24.0"),
    ("AquilaForCausalLM", "0.24.0"),
    ("Grok1ModelForCausalLM", "0.24.0"),
    ("Grok1ForCausalLM", "0.24.0"),
    ("TarsierForConditionalGeneration", "0.24.0"),
    ("Tarsier2ForConditionalGeneration", "0.23.0"),
    ("MantisForConditionalGeneration", "0.24.0"),
    ("TeleChatForCausalLM", "0.25.0"),
)

REMOVED_BY_0_33: tuple[tuple[str, str], ...] = (
    *REMOVED_BY_0_26,
    ("Plamo2ForCausalLM", "0.26.0"),
    ("OuroForCausalLM", "0.26.0"),
    ("ArcticForCausalLM", "0.28.0"),
    ("Cheers", "0.28.0"),
    ("CheersForConditionalGeneration", "0.28.0"),
    ("Fairseq2LlamaForCausalLM", "0.28.0"),
    ("FireRedLIDForConditionalGeneration", "0.28.0"),
    ("GritLM", "0.28.0"),
    ("HCXVisionForCausalLM", "0.28.0"),
    ("MPTForCausalLM", "0.28.0"),
    ("RWForCausalLM", "0.28.0"),
    ("StableLMEpochForCausalLM", "0.28.0"),
    ("PrithviGeoSpatialMAE", "0.28.0"),
)
