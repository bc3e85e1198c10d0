import pytest

from planner.errors import InputError
from planner.model.engine_facts import engine_facts


def test_plain_decoder():
    config = {"model_type": "qwen2", "max_position_embeddings": 32768}
    facts = engine_facts(config, config, "Qwen2ForCausalLM")
    assert not facts.prefix_lm
    assert facts.index_topk is None
    assert facts.ssm_state_dtype == "auto"
    assert facts.default_max_model_len == 32768


@pytest.mark.parametrize(
    ("config", "text", "prefix_lm", "item_tokens"),
    [
        ({"model_type": "gemma3"}, {"model_type": "gemma3_text"}, True, None),
        ({"model_type": "gemma3_text"}, {"model_type": "gemma3_text"}, False, None),
        ({"model_type": "gemma4"}, {"model_type": "gemma4_text", "use_bidirectional_attention": "vision"}, True, 2496),
        ({"model_type": "gemma4"}, {"model_type": "gemma4_text"}, False, None),
        ({"model_type": "other", "is_mm_prefix_lm": True}, {}, True, None),
    ],
)
def test_image_tokens_that_look_both_ways(config, text, prefix_lm, item_tokens):
    facts = engine_facts(config, {"max_position_embeddings": 4096, **text}, "X")
    assert (facts.prefix_lm, facts.prefix_lm_item_tokens) == (prefix_lm, item_tokens)


def test_state_dtype_of_recurrent_layers():
    text = {"max_position_embeddings": 4096}
    assert engine_facts({}, text, "NemotronHForCausalLM").ssm_state_dtype == "float32"
    named = text | {"mamba_ssm_dtype": "float32"}
    assert engine_facts({}, named, "Qwen3_5ForConditionalGeneration").ssm_state_dtype == "float32"
    assert engine_facts({}, named, "Qwen3NextForCausalLM").ssm_state_dtype == "auto"
    with pytest.raises(InputError):
        engine_facts({}, text | {"mamba_ssm_cache_dtype": "int4"}, "NemotronHForCausalLM")


def test_attention_variants():
    text = {"max_position_embeddings": 4096, "index_topk": 2048, "compress_ratios": [4], "attention_chunk_size": 8192}
    facts = engine_facts({}, text, "X")
    assert (facts.index_topk, facts.compress_ratios, facts.attention_chunk_size) == (2048, True, 8192)
    assert engine_facts({}, text | {"model_type": "mimo_v2_flash"}, "X").attention_chunk_size is None
