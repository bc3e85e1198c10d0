"""How layers, heads, blocks and pipeline stages are divided, and vLLM's words where they cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from quantized_cases import card, engine_of, model_of

from planner.engine.config import EngineConfig
from planner.errors import InputError, UnsupportedError
from planner.model.build import build_model
from planner.model.modules import (
    Attention,
    Buffer,
    FusedMoE,
    IndexerCache,
    Linear,
    LMHead,
    MLAProjection,
    Module,
    PackedCache,
    Parameter,
    QKVLinear,
    State,
    StateSpace,
    TokenBuffer,
    VocabEmbedding,
)
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.builder import RankBuilder
from planner.sharding.division import check_norm_groups, column_shards, divide, kv_heads_per_rank, padded_to_blocks
from planner.sharding.pipeline import is_on_stage, layer_range, partition
from planner.sharding.quantization.fp8_kernels import validate_block_shape, validate_moe_block_shape
from planner.sharding.quantization.select import selector_for
from planner.sharding.rank import LayerKVSpec
from planner.sharding.shard import kv_layers, shard, shard_stages
from planner.sharding.state import mamba_spec
from planner.values import Rejected

from layers import EXPERTS, experts, linear  # isort: skip


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"),
    [
        (32, 1, (32,)), (32, 4, (8, 8, 8, 8)), (33, 4, (8, 8, 9, 8)), (34, 4, (8, 9, 9, 8)), (35, 4, (9, 9, 9, 8)),
        (5, 2, (3, 2)), (3, 3, (1, 1, 1)), (2, 3, (1, 1, 0)),
    ],
)  # fmt: skip
def test_what_remains_goes_to_the_middle(layers: int, stages: int, sizes: tuple[int, ...]) -> None:
    """distributed/utils.py:127 get_pp_indices: counted back from the stage before the last."""
    assert partition(layers, stages) == sizes


def test_the_environment_names_each_stages_layers() -> None:
    assert partition(32, 2, "20,12") == (20, 12)
    for wrong in ("20,11", "10,10,12", "32"):
        with pytest.raises(InputError, match="need 2 numbers that add up to 32"):
            partition(32, 2, wrong)
    with pytest.raises(InputError, match="not a list of whole numbers"):
        partition(32, 2, "20,x")


def test_stages_follow_one_another() -> None:
    model = model_of("dense", None)
    config = engine_of(model, "9.0").model_copy(
        update={"pipeline_parallel_size": 3, "env": (("VLLM_PP_LAYER_PARTITION", "4,2,1"),)}
    )
    assert [layer_range(7, rank, config) for rank in range(3)] == [range(4), range(4, 6), range(6, 7)]
    plain = config.model_copy(update={"env": ()})
    assert [layer_range(7, rank, plain) for rank in range(3)] == [range(2), range(2, 5), range(5, 7)]


def test_modules_are_built_where_they_are_placed() -> None:
    def stages(module: Module) -> list[int]:
        return [rank for rank in range(3) if is_on_stage(module, rank, 3, range(2 * rank, 2 * rank + 2))]

    def words(**changes: Any) -> VocabEmbedding:
        return VocabEmbedding(name="e", num_embeddings=8, hidden_size=8, **changes)

    def head(**changes: Any) -> LMHead:
        return LMHead(name="h", num_embeddings=8, hidden_size=8, **changes)

    assert stages(words(placement="first")) == [0]
    assert stages(words(placement="last")) == [2]
    assert stages(words()) == [0, 1, 2]
    assert stages(words(placement=3)) == [1]
    assert stages(head(placement="first")) == stages(head(placement="last")) == [2]
    assert stages(head()) == [0, 1, 2]


def test_each_stage_has_its_layers_weights_and_caches() -> None:
    model = model_of("dense", None)
    config = engine_of(model, "9.0").model_copy(update={"pipeline_parallel_size": 2})
    stages = shard_stages(model, config)
    assert [(share.tp_rank, share.pp_rank) for share in stages] == [(0, 0), (0, 1)]
    assert {(share.tensor_parallel_size, share.pipeline_parallel_size) for share in stages} == {(1, 2)}
    assert [share.layers for share in stages] == [range(1), range(1, 2)]
    for rank, share in enumerate(stages):
        assert [spec.layer_name for spec in share.kv_layers] == [f"model.layers.{rank}.self_attn.attn"]
        assert share.kv_layers == kv_layers(model, config, rank)
    assert kv_layers(model, config) == stages[0].kv_layers
    assert shard(model, config) == stages[0]


def test_division_is_exact() -> None:
    assert divide(12, 4) == 3
    with pytest.raises(Rejected, match="10 is not divisible by 4"):
        divide(10, 4)


@pytest.mark.parametrize(("heads", "tp", "each"), [(8, 1, 8), (8, 4, 2), (8, 8, 1), (2, 8, 1), (1, 16, 1), (3, 3, 1)])
def test_kv_heads_are_divided_or_repeated(heads: int, tp: int, each: int) -> None:
    assert kv_heads_per_rank(heads, tp) == each


@pytest.mark.parametrize(
    ("heads", "tp", "word"), [(8, 3, "divided"), (6, 4, "divided"), (3, 4, "replicated"), (2, 3, "replicated")]
)
def test_kv_heads_that_do_neither_are_refused(heads: int, tp: int, word: str) -> None:
    with pytest.raises(Rejected, match=f"{heads} key-value heads cannot be {word}"):
        kv_heads_per_rank(heads, tp)


def test_norms_have_whole_groups() -> None:
    """layers/mamba/linear/bailing_linear_attn.py:447."""
    check_norm_groups(4, 4)
    check_norm_groups(4, 2)
    with pytest.raises(Rejected, match="tp_size must be <= group_norm_size"):
        check_norm_groups(4, 8)
    with pytest.raises(Rejected, match="group_norm_size must be divisible by tp_size"):
        check_norm_groups(4, 3)


def test_shards_that_each_rank_holds_whole_count_once_for_each() -> None:
    """mamba_mixer2.py:337: a single group's B and C are whole on each rank, and the weight is one shard."""
    layer = Linear(
        name="in", input_size=8, output_sizes=(64, 16, 16, 8), replicated_shards=(1, 2), parallelism="column"
    )
    assert column_shards(layer, 1) == ((64, 16, 16, 8), (64, 16, 16, 8))
    assert column_shards(layer, 2) == ((32 + 16 + 16 + 4,), (64 + 2 * 16 + 2 * 16 + 8,))
    assert column_shards(layer, 4) == ((16 + 16 + 16 + 2,), (64 + 4 * 16 + 4 * 16 + 8,))
    plain = Linear(name="in", input_size=8, output_sizes=(64, 16), parallelism="column")
    assert column_shards(plain, 2) == ((32, 8), (64, 16))


def test_ranks_have_whole_blocks() -> None:
    """models/deepseek_v4/nvidia/model.py:99: 5 blocks over 2 ranks are 3 each."""
    column = Linear(name="c", input_size=640, output_sizes=(640, 256), parallelism="column", whole_blocks=128)
    assert padded_to_blocks(column, 2).output_sizes == (768, 256)
    assert padded_to_blocks(column, 2).input_size == 640
    row = Linear(name="r", input_size=640, output_sizes=(640,), parallelism="row", whole_blocks=128)
    assert (padded_to_blocks(row, 4).input_size, padded_to_blocks(row, 4).output_sizes) == (1024, (640,))


class TestBlocks:
    """quantization/utils/fp8_utils.py:1196 validate_fp8_block_shape; layers/linear.py:502; quantization/fp8.py:559."""

    def check(self, inputs: int, *outputs: int, tp: int, may_differ: bool = False, **changes: Any) -> None:
        shard = linear(inputs, *outputs, tensor_parallel_size=tp, **changes)
        validate_block_shape(shard, (128, 64), fused_may_differ=may_differ)

    def test_divided_inputs_are_whole_blocks(self) -> None:
        self.check(192, 256, tp=2, full_input_size=384, row_parallel=True)
        self.check(96, 256, tp=1, full_input_size=96, row_parallel=True)
        self.check(96, 256, tp=4, full_input_size=192)
        with pytest.raises(Rejected, match=r"input_size_per_partition = 96 is not divisible .* block_k = 64\."):
            self.check(96, 256, tp=2, full_input_size=192, row_parallel=True)

    def test_divided_outputs_are_whole_blocks(self) -> None:
        self.check(96, 256, tp=2, full_output_sizes=(512,))
        self.check(96, 192, tp=1)
        self.check(96, 192, tp=2)
        for outputs in ((192,), (256, 192), (192, 256)):
            with pytest.raises(Rejected, match=r"output_partition_size = 192 is not divisible .* block_n = 128\."):
                self.check(96, *outputs, tp=2, full_output_sizes=tuple(2 * size for size in outputs))

    def test_the_last_part_of_a_whole_fused_layer_may_end_in_a_block(self) -> None:
        self.check(96, 256, 192, tp=1)
        self.check(96, 256, 128, 64, tp=1)
        for outputs in ((192, 256), (128, 64, 128)):
            with pytest.raises(Rejected, match="output_partition_size = "):
                self.check(96, *outputs, tp=1)

    def test_fp8_config_lets_fused_columns_through(self) -> None:
        self.check(96, 192, 256, tp=2, may_differ=True, full_input_size=192, full_output_sizes=(384, 512))
        with pytest.raises(Rejected, match="output_partition_size = 192"):
            self.check(96, 192, tp=2, may_differ=True, full_output_sizes=(384,))
        with pytest.raises(Rejected, match="input_size_per_partition = 96"):
            self.check(96, 256, 256, tp=2, may_differ=True, full_input_size=192)
        with pytest.raises(Rejected, match="output_partition_size = 192"):
            self.check(64, 192, 256, tp=2, may_differ=True, row_parallel=True, full_output_sizes=(384, 512))

    def test_experts_are_whole_blocks(self) -> None:
        validate_moe_block_shape(experts(intermediate_size=256), (128, 64), card(90, tensor_parallel_size=2))
        validate_moe_block_shape(experts(intermediate_size=128), (128, 96), card(90))
        with pytest.raises(Rejected, match="output_size of gate's and up's weight = 192"):
            validate_moe_block_shape(experts(intermediate_size=192), (128, 64), card(90))
        with pytest.raises(Rejected, match=r"input_size of down's weight = 128 is not divisible .* block_k = 96\."):
            validate_moe_block_shape(experts(intermediate_size=128), (128, 96), card(90, tensor_parallel_size=2))


def built(*modules: Module, **changes: Any) -> RankBuilder:
    """The modules of one rank under a configuration with some fields changed."""
    model = model_of("dense", None)
    stage = changes.pop("pp_rank", 0)
    config: EngineConfig = engine_of(model, "9.0").model_copy(update=changes)
    builder = RankBuilder(model, config, stage, selector_for(model, config))
    for module in modules:
        builder.take(module, builder.add)
    return builder


def shapes(*modules: Module, **changes: Any) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in built(*modules, **changes).loaded]


TWO = {"tensor_parallel_size": 2}


class TestModules:
    def test_parameters_are_divided_padded_and_repeated(self) -> None:
        def of(tp: int, **changes: Any) -> tuple[int, ...]:
            return shapes(Parameter(name="p", shape=(6, 20, 3), **changes), tensor_parallel_size=tp)[0]

        assert of(2) == (6, 20, 3)
        assert of(2, shard_dim=1) == (6, 10, 3)
        assert of(2, shard_dim=1, padded_to=8) == (6, 16, 3)
        assert of(3, shard_dim=0, padded_to=2) == (2, 20, 3)
        assert of(12, shard_dim=0, replicate_when_short=True) == (1, 20, 3)
        with pytest.raises(Rejected, match="20 is not divisible by 3"):
            of(3, shard_dim=1)
        with pytest.raises(Rejected, match="group_norm_size"):
            of(2, shard_dim=1, norm_groups=1)

    def test_buffers_are_shared_cut_to_the_length_and_divided_but_for_their_whole_part(self) -> None:
        one, other = (Buffer(name=name, shape=(4,), shared_key="rope") for name in "ab")
        assert shapes(one, other) == [(4,)]
        rows = Buffer(name="r", shape=(8192, 64), rows_by_length=True)
        assert shapes(rows, max_model_len=4096) == [(4096, 64)]
        assert shapes(rows, max_model_len=9000) == [(8192, 64)]
        part = Buffer(name="w", shape=(3, 20), shard_dim=1, whole_size=4)
        assert shapes(part, **TWO) == [(3, 12)]
        roles = [tensor.role for tensor in built(rows, Buffer(name="o", shape=(1,), registered=False)).loaded]
        assert roles == ["buffer", "workspace"]

    def test_heads_of_attention_projections(self) -> None:
        """A gate doubles the query; an indexer adds a key for each head and one of its own."""
        usual = {"name": "qkv", "hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "head_size": 16}
        assert shapes(QKVLinear(**usual), **TWO) == [(64 + 16 + 16, 64)]
        assert shapes(QKVLinear(**usual, head_size_v=8), **TWO) == [(64 + 16 + 8, 64)]
        assert shapes(QKVLinear(**usual, output_gate=True), **TWO) == [(128 + 16 + 16, 64)]
        assert shapes(QKVLinear(**usual, index_head_size=4), **TWO) == [(64 + 16 + 16 + 4 + 4, 64)]
        assert shapes(QKVLinear(**usual), tensor_parallel_size=4) == [(32 + 16 + 16, 64)]
        assert built(QKVLinear(**usual), **TWO).wrappable[0][1].full_output_sizes == (128, 32, 32)
        with pytest.raises(Rejected, match="8 is not divisible by 3"):
            shapes(QKVLinear(**usual), tensor_parallel_size=3)

    def test_linear_layers_are_divided_by_their_kind(self) -> None:
        def of(kind: Any, **changes: Any) -> list[tuple[int, ...]]:
            layer = Linear(name="l", input_size=64, output_sizes=(32,), parallelism=kind, bias=True, **changes)
            return shapes(layer, **TWO)

        assert of("replicated") == [(32, 64), (32,)]
        assert of("column") == [(16, 64), (16,)]
        assert of("row") == [(32, 32), (32,)]
        assert of("column", tensor_parallel=False) == [(32, 64), (32,)]
        assert of("column", whole_unless_divides=3) == [(32, 64), (32,)]
        assert of("column", whole_unless_divides=4) == [(16, 64), (16,)]
        with pytest.raises(Rejected, match="3 is not divisible by 2"):
            of("column", num_heads=3)

    def test_shared_experts_are_whole_where_each_rank_has_other_tokens(self) -> None:
        """config/parallel.py use_sequence_parallel_moe: expert, tensor and data parallelism at once."""
        layer = Linear(
            name="l", input_size=8, output_sizes=(32,), parallelism="column", whole_in_sequence_parallel=True
        )
        together = {**TWO, "data_parallel_size": 2, "enable_expert_parallel": True}
        assert shapes(layer, **together) == [(32, 8)]
        assert shapes(layer, **{**together, "tensor_parallel_size": 1}) == [(32, 8)]
        for one in ({"data_parallel_size": 1}, {"enable_expert_parallel": False}):
            assert shapes(layer, **{**together, **one}) == [(16, 8)]

    @pytest.mark.parametrize(
        ("capability", "dtype"),
        [((9, 0), "bfloat16"), ((10, 0), "bfloat16"), ((10, 3), "bfloat16"), ((8, 0), "float32"), ((12, 0), "float32")],
    )
    def test_routers_are_float32_where_there_is_no_kernel(self, capability: tuple[int, int], dtype: str) -> None:
        """fused_moe/router/gate_linear.py:67."""
        gate = Linear(name="g", input_size=8, output_sizes=(4,), float32_gate=True)
        assert built(gate, compute_capability=capability).loaded[0].dtype == dtype

    def test_vocabularies_are_padded_and_divided(self) -> None:
        words = VocabEmbedding(name="e", num_embeddings=1000, hidden_size=8)
        assert shapes(words) == [(1024, 8)]
        assert shapes(words, **TWO) == [(512, 8)]
        assert shapes(VocabEmbedding(name="e", num_embeddings=1000, hidden_size=8, tensor_parallel=False), **TWO) == [
            (1024, 8)
        ]
        head = LMHead(name="h", num_embeddings=1024, hidden_size=8, bias=True)
        assert shapes(head, **TWO) == [(512, 8), (512,)]
        with pytest.raises(Rejected, match="1024 is not divisible by 3"):
            shapes(words, tensor_parallel_size=3)

    def test_a_tied_head_is_a_copy_on_a_later_stage_alone(self) -> None:
        tied = LMHead(name="h", num_embeddings=1024, hidden_size=8, tied_to="e", placement="last", bias=True)
        assert shapes(tied) == []
        assert shapes(tied, pp_rank=1) == [(1024, 8)]
        assert shapes(LMHead(name="h", num_embeddings=1024, hidden_size=8, tied_to="e"), pp_rank=1) == []

    def test_experts_are_divided_by_width_or_by_number(self) -> None:
        moe = FusedMoE(name="m", num_experts=6, top_k=2, hidden_size=16, intermediate_size=32)
        assert shapes(moe, **TWO) == [(6, 32, 16), (6, 16, 16)]
        assert shapes(moe, **TWO, data_parallel_size=2) == [(6, 16, 16), (6, 16, 8)]
        whole = {"enable_expert_parallel": True}
        assert shapes(moe, **whole) == [(6, 64, 16), (6, 16, 32)]
        assert shapes(moe, **whole, **TWO) == [(3, 64, 16), (3, 16, 32), (6,)]
        assert shapes(moe, **whole, tensor_parallel_size=4) == [(2, 64, 16), (2, 16, 32), (6,)]
        bare = FusedMoE(name="m", num_experts=6, top_k=2, hidden_size=16, intermediate_size=32, gated=False, bias=True)
        assert shapes(bare) == [(6, 32, 16), (6, 32), (6, 16, 32), (6, 16)]
        assert built(moe, **whole, **TWO).loaded[-1].dtype == "int32"

    def test_absorbed_projections_are_buffers_after_loading(self) -> None:
        mla = MLAProjection(name="a", num_heads=8, qk_nope_head_dim=12, kv_lora_rank=16, v_head_dim=10)
        done = built(mla, **TWO)
        assert done.created == []
        assert [tensor.shape for tensor in done.loaded] == [(4, 12, 16), (4, 16, 10)]

    def test_token_buffers_have_a_row_for_each_token_of_a_step(self) -> None:
        buffer = TokenBuffer(name="t", heads=4, columns=10)
        assert shapes(buffer, max_num_batched_tokens=100, tensor_parallel_size=2) == [(100, 20)]
        assert shapes(buffer, max_num_batched_tokens=100, tensor_parallel_size=8) == [(100, 10)]

    def test_attention_caches_by_its_heads_unless_it_shares(self) -> None:
        usual = {"kind": "full_attention", "num_heads": 8, "num_kv_heads": 4, "head_size": 16}
        one = Attention(name="a", **usual)
        cached = built(one, Attention(name="b", **usual, shares_kv_with="a", head_size_v=8), **TWO).kv_layers
        assert [(spec.layer_name, spec.num_kv_heads, spec.head_size, spec.head_size_v) for spec in cached] == [
            ("a", 2, 16, 16)
        ]
        assert built(Attention(name="b", **usual, head_size_v=8)).kv_layers[0].head_size_v == 8
        with pytest.raises(Rejected, match="target layer a is not a valid Attention layer"):
            built(Attention(name="b", **usual, shares_kv_with="a"))
        assert built(Attention(name="a", **{**usual, "kind": "encoder_only"})).kv_layers == []
        assert shapes(one) == [(), (), (), ()]
        assert shapes(Attention(name="a", **usual, registered=False)) == []
        indexer = built(IndexerCache(name="i", head_size=132, dtype="uint8")).kv_layers[0]
        assert (indexer.num_kv_heads, indexer.head_size, indexer.head_size_v, indexer.dtype) == (1, 132, 132, "uint8")

    def test_layers_that_keep_the_models_dtype(self) -> None:
        usual = {"kind": "full_attention", "num_heads": 8, "num_kv_heads": 4, "head_size": 16}
        changes = {"kv_cache_dtype": "fp8", "kv_torch_dtype": "uint8", "kv_cache_dtype_skip_layers": (1,)}
        plain, packed = built(
            Attention(name="a", placement=1, **usual), Attention(name="b", placement=2, **usual), **changes
        ).kv_layers
        assert (plain.dtype, plain.cache_dtype, packed.dtype, packed.cache_dtype) == (
            "bfloat16",
            "auto",
            "uint8",
            "fp8",
        )

    def test_equal_modules_are_stored_alike_each_under_its_name(self) -> None:
        done = built(*(Linear(name=f"l{layer}", placement=layer, input_size=8, output_sizes=(4,)) for layer in (0, 1)))
        assert [(tensor.module, tensor.layer, tensor.shape) for tensor in done.loaded] == [
            ("l0", 0, (4, 8)),
            ("l1", 1, (4, 8)),
        ]
        assert EXPERTS.name != "l0"


class TestPackedCaches:
    """models/deepseek_v4/attention.py:605, 648, compressor.py:169."""

    def spec(self, role: Any, changes: dict[str, Any] | None = None, **fields: Any) -> LayerKVSpec:
        module = PackedCache(name="c", role=role, head_size=584, **fields)
        return built(module, **{"kv_cache_dtype": "fp8", **(changes or {})}).kv_layers[0]

    def test_each_role_has_its_layout(self) -> None:
        keys = self.spec("keys", compress_ratio=4, block_size=64)
        assert (keys.kind, keys.dtype, keys.cache_dtype, keys.model_version) == (
            "mla_attention", "uint8", "fp8_ds_mla", "deepseek_v4",
        )  # fmt: skip
        assert (keys.num_kv_heads, keys.head_size, keys.head_size_v, keys.alignment_bytes) == (1, 584, 584, 576)
        assert (keys.compress_ratio, keys.block_size, keys.window) == (4, 64, None)
        window = self.spec("window", window=128)
        assert (window.kind, window.cache_dtype, window.block_size) == ("sliding_window_mla", "fp8_ds_mla", None)
        assert (self.spec("index").cache_dtype, self.spec("index").model_version) == ("auto", "")
        state = self.spec("state", window=8)
        assert (state.dtype, state.cache_dtype, state.kind) == ("float32", "auto", "sliding_window_mla")

    def test_other_layouts_are_not_known_and_other_dtypes_refused(self) -> None:
        for changes in ({"compute_capability": (12, 0)}, {"attention_backend": "FLASHINFER_MLA"}):
            with pytest.raises(UnsupportedError, match="FlashInfer cache"):
                self.spec("keys", changes)
        with pytest.raises(Rejected, match="fp8_ds_mla layout only supports fp8 kv-cache, got bfloat16"):
            self.spec("keys", {"kv_cache_dtype": "bfloat16"})


def test_towers_are_built_unless_all_they_take_is_limited_to_nothing() -> None:
    """models/interfaces.py _mark_tower_model."""
    folder = Path(__file__).parent.parent / "data" / "configs" / "Qwen__Qwen2.5-VL-7B-Instruct"
    model = build_model(ModelFiles(name="vl", config=json.loads((folder / "config.json").read_text())))
    config = engine_of(model, "9.0")

    def has_tower(model: ModelSpec = model, **changes: Any) -> bool:
        parts = {tensor.component for tensor in shard(model, config.model_copy(update=changes)).created}
        return "vision_tower" in parts

    assert has_tower(mm_limits=())
    assert has_tower(mm_limits=(("image", 0),))
    assert has_tower(mm_limits=(("image", 0), ("video", 1)))
    assert not has_tower(mm_limits=(("image", 0), ("video", 0)))
    assert not has_tower(language_model_only=True)
    assert model.vision is not None
    by_image = replace(model, vision=replace(model.vision, dropped_with=("image",)))
    assert not has_tower(by_image, mm_limits=(("image", 0),))
    never = replace(model, vision=replace(model.vision, dropped_with=()))
    assert has_tower(never, mm_limits=(("image", 0), ("video", 0)))
    assert has_tower(never, language_model_only=True)
    heard = replace(model, vision=replace(model.vision, modalities=("image", "audio")))
    assert not has_tower(heard, mm_limits=(("image", 0),))


class TestStates:
    """mamba_utils.py MambaStateShapeCalculator: one group counts once for each rank; drafts add rows."""

    def state(self, tp: int, drafts: int = 0, **changes: Any) -> tuple[tuple[int, ...], ...]:
        usual = {
            "name": "m", "kind": "mamba2", "num_heads": 8, "num_groups": 1, "chunk_size": 256,
            "states": (State(role="conv", shape=(3, 64), shard_dim=1, group_size=16, row_per_draft=True),
                       State(role="ssm", shape=(8, 4, 2), shard_dim=0)),
        }  # fmt: skip
        model = model_of("dense", None)
        config = engine_of(model, "9.0").model_copy(
            update={"tensor_parallel_size": tp, "num_speculative_tokens": drafts}
        )
        spec = mamba_spec(StateSpace(**{**usual, **changes}), config)
        assert built(StateSpace(**{**usual, **changes}), tensor_parallel_size=tp).kv_layers[0].kind == "mamba"
        assert spec.num_speculative_blocks == drafts
        assert spec.chunk_size == 256
        return spec.state_shapes

    def test_shapes_of_one_request(self) -> None:
        assert self.state(1) == ((3, 80), (8, 4, 2))
        assert self.state(4) == ((3, 32), (2, 4, 2))
        assert self.state(2, num_groups=2) == ((3, 48), (4, 4, 2))
        assert self.state(1, drafts=2) == ((5, 80), (8, 4, 2))

    def test_what_cannot_be_divided(self) -> None:
        with pytest.raises(Rejected, match="must divide num heads"):
            self.state(3)
        with pytest.raises(Rejected, match="num_groups must equal 1"):
            self.state(4, num_groups=2)
        with pytest.raises(Rejected, match="65 is not divisible by 2"):
            self.state(2, states=(State(role="conv", shape=(3, 65), shard_dim=1),))
        assert self.state(3, num_groups=0, states=()) == ()
