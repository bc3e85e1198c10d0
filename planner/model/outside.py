"""Why an architecture cannot be planned: what else vLLM does with a class of that name.

Source: vLLM 0.26.0 config/model.py:1952 _SUFFIX_TO_DEFAULTS, model_executor/models/registry.py.
"""

from __future__ import annotations

from planner.errors import UnsupportedError
from planner.values import Rejected, reject

PLUGINS = {
    "BartModel": "https://github.com/vllm-project/bart-plugin",
    "BartForConditionalGeneration": "https://github.com/vllm-project/bart-plugin",
    "Florence2ForConditionalGeneration": "https://github.com/vllm-project/bart-plugin",
    "MBartForConditionalGeneration": "https://github.com/vllm-project/bart-plugin",
}
_GENERATING = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
_GENERATING_NAMES = ("MiDashengLMModel", "MossAudioModel")
"""Classes of the registry's multimodal part whose names end as those of pooling models do."""
_POOLING = ("Model", "Modeling", "ForTextEncoding", "Classification", "ForMaskedLM", "ForRanking", "ForRetrieval")
_POOLING_NAMES = ("HF_ColBERT", "ColQwen3", "ColQwen3_5", "PrithviGeoSpatialMAE", "Terratorch")
_DRAFTS = ("MTPModel", "MTP", "DraftModel", "DSparkModel", "MedusaModel")
_DRAFT_PREFIXES = ("Eagle", "PEagle", "Peagle", "DFlash", "ExtractHiddenStates")


def refusal(architecture: str) -> UnsupportedError | Rejected | None:
    """The error that says why; None where only this planner's knowledge ends."""
    if architecture in PLUGINS:
        return reject(
            "flag",
            f"Model architecture {architecture} is not supported in-tree anymore. Please install the plugin at "
            f"{PLUGINS[architecture]} if you want to use this model architecture.",
        )
    if architecture.startswith("Transformers"):
        return _unsupported(
            architecture, "is vLLM's wrapper of transformers' own classes, which are not described here"
        )
    if architecture.endswith(_DRAFTS) or architecture.startswith(_DRAFT_PREFIXES):
        return _unsupported(architecture, "drafts for another model: plan that one, with --speculative-config")
    if architecture.endswith(_GENERATING) or architecture in _GENERATING_NAMES:
        return None
    if architecture.endswith(_POOLING) or architecture in _POOLING_NAMES:
        what = "is served for pooling only (embeddings, scores, classes); this planner plans generation"
        return _unsupported(architecture, what)
    return None


def _unsupported(architecture: str, what: str) -> UnsupportedError:
    return UnsupportedError("architecture", f"architecture {architecture} {what}")
