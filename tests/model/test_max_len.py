"""Derived lengths against what vLLM 0.26.0 prints for the same configs."""

import pytest

from planner.errors import InputError
from planner.model.max_len import default_max_model_len, derive_max_model_len, printed_max_model_len


@pytest.mark.parametrize(
    ("text", "length", "source", "printed"),
    [
        ({"max_position_embeddings": 32768}, 32768, "max_position_embeddings", "32768.0"),
        ({"seq_length": 8192}, 8192, "seq_length", "8192.0"),
        ({"max_position_embeddings": 4096, "n_positions": 1024}, 1024, "n_positions", "1024.0"),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072, "model_max_length", "131072.0"),
        (
            {"max_position_embeddings": 8192, "rope_scaling": {"type": "linear", "factor": 4.0}},
            32768,
            "max_position_embeddings",
            "32768.0",
        ),
        (
            {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            131072,
            "max_position_embeddings",
            "131072.0",
        ),
        (
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163840,
            "max_position_embeddings",
            "163840",
        ),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
            "max_position_embeddings",
            "131072.0",
        ),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            131072,
            "max_position_embeddings",
            "131072.0",
        ),
        (
            {"max_position_embeddings": 131072, "rope_scaling": {"type": "su", "factor": 32.0}},
            131072,
            "max_position_embeddings",
            "131072.0",
        ),
        ({}, 2048, "", "2048.0"),
    ],
)
def test_length_and_its_source(text, length, source, printed):
    assert derive_max_model_len(text) == (length, source)
    assert printed_max_model_len(text) == printed


def test_longrope_serves_its_original_length_unless_asked():
    text = {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    }
    assert derive_max_model_len(text)[0] == 131072
    assert default_max_model_len(text) == 4096


@pytest.mark.parametrize(
    "text",
    [
        {"max_position_embeddings": "many"},
        {"max_position_embeddings": -1},
        {"max_position_embeddings": True},
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": "four"}},
    ],
)
def test_nonsense_is_bad_input(text):
    with pytest.raises(InputError):
        derive_max_model_len(text)
