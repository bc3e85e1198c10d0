"""An engine of the thin model: all that the whole engine sets aside beside its weights, as `select` works it out."""

from __future__ import annotations

from dataclasses import replace

from msgspec.structs import replace as changed

from planner.engine.config import EngineConfig
from planner.memory.device import Boot
from planner.memory.graphs import cuda_graph_estimate_bytes
from planner.memory.runtime import encoder_peak, retained_bytes
from planner.model.spec import ModelSpec
from planner.search.costs import MANY_BLOCKS, Thinned, engine_terms, whole_graph_bytes
from planner.search.media import media_of
from planner.search.select_bounds import RETAINED, SAMPLED_BYTES, Aside, Engine
from planner.search.select_judge import Judge
from planner.sharding.rank import RankShare

_CAPABILITIES = ((9, 0), (9, 1), (10, 0), (11, 0), (12, 0))
"""Where the replay of an engine changes with the compute capability: Hopper's attention and autotuning, DeepGEMM and
Blackwell's kernels."""
_CAPABILITIES_OF_KERNELS = ((8, 0), (8, 9))
"""The same for FlashAttention in towers and for FP8 kernels."""
_DTYPES = ("dtype", "kv_torch_dtype", "conv_state_dtype", "ssm_state_dtype")


def with_one_dtype(config: EngineConfig) -> EngineConfig:
    """The configuration with one 16-bit dtype for both: they have the same sizes."""
    halves = [name for name in _DTYPES if getattr(config, name) == "float16"]
    return config.model_copy(update=dict.fromkeys(halves, "bfloat16")) if halves else config


def replay_of(model: ModelSpec, config: EngineConfig) -> EngineConfig:
    """What the replay of an engine with given weights depends on: equal for cards that replay alike. The attention
    backend counts with latent attention and on Hopper."""
    steps: tuple[tuple[int, int], ...] = _CAPABILITIES
    if model.vision is not None or config.quantization is not None:
        steps = (*_CAPABILITIES_OF_KERNELS, *_CAPABILITIES)
    alike = max((least for least in steps if config.compute_capability >= least), default=(0, 0))
    update: dict[str, object] = {
        "compute_capability": alike,
        "sm_count": None if config.model_runner == "v2" else config.sm_count,
    }
    if not (model.use_mla or alike == (9, 0)):
        update |= {"attention_backend": "", "attention_backends": ()}
    return with_one_dtype(config).model_copy(update=update)


class ThinEngine:
    """`aside` is the engine's own, exact but for the weights; its `device` is worked out by `add_device`, and lies
    within `least_device` and `most_device` before."""

    def __init__(self, judge: Judge, engine: Engine, small: ModelSpec, share: RankShare) -> None:
        self.config, self._engine = engine.config, engine
        held = {tensor.layer for tensor in share.created}
        thinned: Thinned = (
            small,
            changed(share, layers=tuple(layer for layer in share.layers if layer in held), kv_layers=()),
        )
        config = self.config
        terms = engine_terms(
            judge.model, share, thinned, config, 0, cuda_graph_estimate_bytes(small, share, config),
            config.max_num_batched_tokens, config.max_num_seqs, judge.options.confidence,
        )  # fmt: skip
        self._thinned = thinned
        self.aside = Aside(terms.non_kv_bytes, terms.profile_peak_bytes - engine.context)
        graphs = whole_graph_bytes(thinned, len(share.layers), config)
        encoder = encoder_peak(*thinned, config, media_of(judge.options))[0]
        self.least_device = terms.device_bytes(graphs, 0) + encoder - engine.context - terms.non_kv_bytes
        rows = min(config.max_num_seqs, config.max_num_batched_tokens)
        passes = terms.peak_bytes + rows * judge.model.text.vocab_size * SAMPLED_BYTES
        self.most_device = self.least_device + passes + RETAINED.room(terms.peak_bytes)

    @property
    def knows_device(self) -> bool:
        return self.aside.device is not None

    @property
    def least(self) -> Aside:
        return self.aside if self.knows_device else replace(self.aside, device=self.least_device)

    @property
    def most(self) -> Aside:
        return self.aside if self.knows_device else replace(self.aside, device=self.most_device)

    def add_device(self) -> None:
        """Replay the startup to its end, for what the allocator retains."""
        if self.knows_device:
            return
        pool = self._engine.pool
        retained = retained_bytes(Boot(*self._thinned, self.config), pool, pool.fullest, MANY_BLOCKS)
        self.aside = replace(self.aside, device=self.least_device + retained)
