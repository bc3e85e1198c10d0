"""What an architecture that cannot be planned is told: served for pooling, by a plugin, as a draft, or not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import UnsupportedError
from planner.model.outside import refusal
from planner.model.registry import ARCHITECTURES, describe
from planner.values import Rejected

SERVED = json.loads((Path(__file__).parent.parent.parent / "scripts" / "vllm_architectures.json").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "Qwen2Model",
        "Qwen2ForRewardModel",
        "RobertaForMaskedLM",
        "JinaVLForRanking",
        "ColPaliForRetrieval",
        "ColQwen3",
        "Terratorch",
        "Qwen3ForSequenceClassification",
        "BertForTokenClassification",
        "ForRewardModeling",
    ],
)
def test_pooling_models_are_named_so(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"architecture {name} is served for pooling only"):
        describe(name)


@pytest.mark.parametrize("name", ["Eagle3LlamaForCausalLM", "DeepSeekMTPModel", "MedusaModel", "DFlashDraftModel"])
def test_drafts_are_planned_with_their_target(name: str) -> None:
    with pytest.raises(UnsupportedError, match="drafts for another model"):
        describe(name)


def test_what_a_plugin_serves_is_refused_as_vllm_does() -> None:
    with pytest.raises(Rejected) as refused:
        describe("BartModel")
    assert refused.value.rejection.message == (
        "Model architecture BartModel is not supported in-tree anymore. Please install the plugin at "
        "https://github.com/vllm-project/bart-plugin if you want to use this model architecture."
    )


def test_the_wrapper_of_transformers_is_named_so() -> None:
    with pytest.raises(UnsupportedError, match="wrapper of transformers' own classes"):
        describe("TransformersForCausalLM")


@pytest.mark.parametrize("name", [*SERVED["text"], *SERVED["multimodal"]])
def test_no_class_that_generates_is_taken_for_another(name: str) -> None:
    if name not in ARCHITECTURES:
        assert refusal(name) is None


def test_a_name_alike_is_offered_and_no_other() -> None:
    with pytest.raises(UnsupportedError, match=r"closest known: Qwen3ForCausalLM"):
        describe("Qwen33ForCausalLM")
    with pytest.raises(UnsupportedError) as unknown:
        describe("SomethingNewForCausalLM")
    assert "closest" not in str(unknown.value)
