"""One request's recurrent states on one rank: shapes, dtypes and their order, as vLLM's MambaSpec has them."""

from __future__ import annotations

import pytest
from hybrid_golden import engine, model_of, share

from planner.model.modules import State, StateSpace
from planner.sharding.rank import LayerKVSpec
from planner.sharding.shard import shard
from planner.sharding.state import mamba_spec
from planner.values import Rejected


def states(config: str, **settings: object) -> list[LayerKVSpec]:
    result = share(model_of(config), **settings)  # type: ignore[arg-type]
    return [layer for layer in result.kv_layers if layer.kind == "mamba"]


@pytest.mark.parametrize(
    ("config", "tp", "shapes", "dtypes"),
    [
        ("Qwen__Qwen3-Next-80B-A3B-Thinking", 8, ((3, 1024), (4, 128, 128)), ("bfloat16", "bfloat16")),
        ("Qwen__Qwen3.5-27B", 1, ((3, 10240), (48, 128, 128)), ("bfloat16", "float32")),
        ("Qwen__Qwen3.5-27B", 2, ((3, 5120), (24, 128, 128)), ("bfloat16", "float32")),
        ("nvidia__Nemotron-H-56B-Base-8K", 8, ((3, 2048 + 2 * 256), (32, 64, 256)), ("bfloat16", "float32")),
        # A single group of B and C counts once for each rank.
        ("made/granite-4-tiny", 1, ((3, 3072 + 2 * 128), (48, 64, 128)), ("bfloat16", "bfloat16")),
        ("made/granite-4-tiny", 4, ((3, 768 + 2 * 128), (12, 64, 128)), ("bfloat16", "bfloat16")),
        ("made/jamba", 2, ((3, 4096), (4096, 16)), ("bfloat16", "bfloat16")),
        ("made/lfm2", 2, ((2, 1024),), ("bfloat16",)),
        # Kimi delta attention keeps its state in float32 whatever the flags say.
        ("made/kimi-linear", 2, ((3, 3 * 2048), (16, 128, 128)), ("bfloat16", "float32")),
    ],
)
def test_states_of_one_rank(config: str, tp: int, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str, ...]) -> None:
    first = states(config, tp=tp)[0]
    assert (first.state_shapes, first.state_dtypes) == (shapes, dtypes)


def test_layers_keep_the_order_in_which_they_are_built() -> None:
    kinds = [layer.kind for layer in share(model_of("Qwen__Qwen3.5-27B")).kv_layers]
    assert kinds == ["mamba", "mamba", "mamba", "full_attention"] * 16
    beside = share(model_of("made/falcon-h1")).kv_layers[:2]
    assert [layer.layer_name for layer in beside] == ["model.layers.0.attn", "model.44.mixer"]
    shared = share(model_of("made/zamba2-7b")).kv_layers
    assert [layer.layer_name for layer in shared[:11]] == [f"model.attn.{turn}" for turn in range(11)]


def test_a_models_half_precision_is_the_convolutions() -> None:
    first = states("Qwen__Qwen3.5-27B", flags="--dtype half")[0]
    assert first.state_dtypes == ("float16", "float32")


def test_drafts_lengthen_the_convolutions_window_where_vllm_does() -> None:
    """A row for each speculative token in gated delta nets and Mamba-2, none in Kimi's, Mamba or short convolutions."""

    def rows(name: str) -> tuple[int, int]:
        model = model_of(name)
        config = engine(model).model_copy(update={"num_speculative_tokens": 3})
        spec = next(layer for layer in shard(model, config).kv_layers if layer.kind == "mamba")
        return spec.state_shapes[0][0], spec.num_speculative_blocks

    assert rows("Qwen__Qwen3.5-27B") == (6, 3)
    assert rows("made/nemotron-h") == (6, 3)
    assert rows("made/kimi-linear") == (3, 3)
    assert rows("made/jamba") == (3, 3)
    assert rows("made/lfm2") == (2, 3)


@pytest.mark.parametrize(
    ("config", "chunk"), [("made/granite-4-tiny", 256), ("made/nemotron-h", 128), ("made/mamba", 2048)]
)
def test_kernels_chunk(config: str, chunk: int) -> None:
    assert {layer.chunk_size for layer in states(config)} == {chunk}


def space(**fields: object) -> StateSpace:
    given = {"kind": "mamba2", "states": (State(role="conv", shape=(3, 12), shard_dim=1),)} | fields
    return StateSpace(name="mixer", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (space(), "12 is not divisible by 8"),
        (space(num_heads=12, num_groups=1), "Tensor parallel world size must divide num heads."),
        (
            space(num_heads=16, num_groups=2),
            "If tensor parallel world size does not divide num_groups, then num_groups must equal 1.",
        ),
    ],
)
def test_what_cannot_be_divided(module: StateSpace, sentence: str) -> None:
    config = engine(model_of("made/mamba"), tp=8)
    with pytest.raises(Rejected) as raised:
        mamba_spec(module, config)
    assert raised.value.rejection.message == sentence
    assert raised.value.rejection.bottleneck == "heads_divisibility"
