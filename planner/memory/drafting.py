"""A draft head's part of a step: it reads the target's hidden states, runs its layers, and picks a token a request.

Source: vLLM 0.26.0 v1/worker/gpu/spec_decode/autoregressive/speculator.py:142 propose, models/llama_eagle.py,
llama_eagle3.py. The later draft steps take one token a request: they need less than the first and find its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.engine.config import EngineConfig
from planner.memory.layers import FP8_CACHE, batchless, uses_mrope
from planner.memory.linear import LinearRun, linear_runs
from planner.memory.program import LiveTensor, Program
from planner.memory.sampling import Head, head_of
from planner.memory.step import Step
from planner.model.draft_spec import Draft
from planner.model.modules import Linear, LMHead, QKVLinear
from planner.model.spec import ModelSpec
from planner.once import once
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.values import DTYPE_BYTES


class KeptStates:
    """Hidden states of the target that a forward pass keeps for the draft, each when the pass reaches its layer."""

    def __init__(self, model: ModelSpec, size: int) -> None:
        self._waiting = list(model.draft.target_layers) if model.draft is not None else []
        self._size = size
        self.handles: list[int] = []

    def before(self, p: Program, layer: int) -> None:
        while self._waiting and layer >= self._waiting[0]:
            self._waiting.pop(0)
            self.handles.append(p.alloc("hidden states for the draft", token=self._size))


def draft_buffers(model: ModelSpec, config: EngineConfig) -> tuple[LiveTensor, ...]:
    """What the speculator keeps, made with the runner (vLLM 0.26.0 v1/worker/gpu/spec_decode/speculator.py:66)."""
    draft = model.draft
    if draft is None:
        return ()
    item = DTYPE_BYTES[config.dtype]
    if config.model_runner == "v1":
        return _proposer_buffers(draft, config, item, 24 if uses_mrope(model) and draft.method == "mtp" else 8)
    return (
        LiveTensor("draft input tokens", bytes_per_token=4),
        LiveTensor("draft positions", bytes_per_token=8),
        LiveTensor("draft padding flags", bytes_per_token=1),
        LiveTensor("draft query starts", bytes_per_seq=4, constant_bytes=4),
        LiveTensor("draft sequence lengths", bytes_per_seq=4),
        LiveTensor("draft local sequence lengths", bytes_per_seq=4),
        LiveTensor("draft request indices", bytes_per_seq=4),
        LiveTensor("draft temperatures", bytes_per_seq=4),
        LiveTensor("draft seeds", bytes_per_seq=8),
        LiveTensor("drafted tokens", bytes_per_seq=8 * config.num_speculative_tokens),
        LiveTensor("draft hidden states", bytes_per_token=draft.hidden_size * item),
        LiveTensor("draft step", constant_bytes=8),
        LiveTensor("last token indices", bytes_per_seq=8),
    )


def _proposer_buffers(draft: Draft, config: EngineConfig, item: int, position: int) -> tuple[LiveTensor, ...]:
    """V1's; `position`: bytes of a token's. Source: vLLM 0.26.0 v1/spec_decode/llm_base_proposer.py:167."""
    masks = ("rejected tokens", "masked tokens") if draft.method == "draft_model" else ()
    longest = max(config.max_num_seqs + 1 - config.max_num_batched_tokens, 0)
    return (
        LiveTensor("draft input tokens", bytes_per_token=4),
        LiveTensor("draft positions", bytes_per_token=position, constant_bytes=position & 16),
        LiveTensor("draft hidden states", bytes_per_token=draft.hidden_size * item),
        LiveTensor("draft numbers", bytes_per_token=4, constant_bytes=4 * longest),
        *(LiveTensor(name, bytes_per_token=1) for name in masks),
        LiveTensor("draft input embeddings", bytes_per_token=draft.hidden_size * item),
        LiveTensor("draft backup tokens", bytes_per_seq=4),
        LiveTensor("draft slot mapping", bytes_per_token=8),
    )


def write_drafting(p: Program, model: ModelSpec, share: RankShare, config: EngineConfig, kept: tuple[int, ...]) -> None:
    """The first draft step over the batch of the target, whose `kept` hidden states go when it is done. V1's dummy
    runs go through the draft's layers only, on hidden states from its buffer."""
    if model.draft is None:
        return
    p.stage("draft model")
    if model.draft.method == "mtp":
        _write_predictor(p, model, share, config)
        p.free(*kept)
        return
    if model.draft.model is not None:
        _write_model(p, model.draft.model, config)
        p.free(*kept)
        return
    drafting = _Drafting(model, share, config, model.draft)
    if config.model_runner == "v1":
        p.free(drafting.run(p))
    else:
        drafting.write(p)
    p.free(*kept)


def _write_model(p: Program, draft: ModelSpec, config: EngineConfig) -> None:
    """A pass of a model of its own, as the engine's own passes run."""
    from planner.memory.activation import forward_of

    config = batchless(draft, config)
    p.free(forward_of(draft, _share(draft, config), config).write(p, Step()))


def _write_predictor(p: Program, model: ModelSpec, share: RankShare, config: EngineConfig) -> None:
    """Embeddings, masked and normed, the states normed, both joined, and the layer on their projection, which stands
    where a model has its embeddings. V2 samples a token a request from it. Source: vLLM 0.26.0
    model_executor/models/deepseek_mtp.py:122, v1/spec_decode/llm_base_proposer.py:1621."""
    from planner.memory.activation import forward_of

    assert model.draft is not None
    layer: ModelSpec = model.draft.whole
    hidden = model.text.hidden_size * DTYPE_BYTES[config.dtype]
    embeds = p.alloc("draft token embeddings", token=hidden)
    masked = p.alloc("draft token embeddings, the first masked", token=hidden)
    normed = p.alloc("normalized draft embeddings", token=hidden)
    p.free(masked)
    states = p.alloc("normalized hidden states of the target", token=hidden)
    joined = p.alloc("draft embeddings and hidden states, joined", token=2 * hidden)
    p.free(p.alloc("projected embeddings and states", token=hidden), joined)
    settled = batchless(layer, config)
    out = forward_of(layer, _share(layer, settled), settled).write(p, Step())
    last = p.alloc("normalized draft hidden states", token=hidden)
    p.free(normed, states, embeds)
    if config.model_runner == "v2":
        sampled = p.alloc("draft hidden states of the last tokens", seq=hidden)
        logits = head_of(model, share, config).logits(p)
        p.free(p.alloc("greedy draft tokens", seq=8), logits, sampled)
    p.free(last, out)


@once
def _share(draft: ModelSpec, config: EngineConfig) -> RankShare:
    return shard(draft, config.model_copy(update={"enable_lora": False}))


class _Drafting:
    def __init__(self, model: ModelSpec, share: RankShare, config: EngineConfig, draft: Draft) -> None:
        self.draft = draft
        self.config = config
        self.item = DTYPE_BYTES[config.dtype]
        self.tp = config.tensor_parallel_size
        self.hidden = draft.hidden_size * self.item
        self.target_hidden = model.text.hidden_size * self.item
        self.runs: Mapping[str, LinearRun] = linear_runs(model, share, config)
        self.modules = [module for module in model.modules if module.component == "draft_model"]
        self.head = self._head(model, share)

    def _head(self, model: ModelSpec, share: RankShare) -> Head:
        target = head_of(model, share, self.config)
        own = next((module for module in self.modules if isinstance(module, LMHead)), None)
        if own is None:
            return target
        return Head(
            vocab=self.draft.words, padded=-(-self.draft.words // own.padding) * own.padding,
            hidden=self.draft.hidden_size, item=self.item, tp=self.tp, run=self.runs[own.name],
        )  # fmt: skip

    def write(self, p: Program) -> None:
        states = None
        if self.draft.target_layers:
            joined = p.alloc("joined hidden states of the target", token=self.draft.joined * self.target_hidden)
            states = self._linear(p, self._named("model.fc"), "projected hidden states", self.hidden)
            p.free(joined)
        positions = p.alloc("positions of the last tokens", seq=8)
        out = self.run(p)
        sampled = p.alloc("draft hidden states of the last tokens", seq=self.hidden)
        self._sample(p)
        p.free(sampled, out, positions, states)

    def _sample(self, p: Program) -> None:
        logits = self.head.logits(p)
        whole = None
        if self.draft.target_layers:
            words = [p.alloc(name, constant=8 * self.draft.words) for name in ("draft words", "target words")]
            whole = p.alloc("draft logits of all words", seq=self.draft.all_words * self.item)
            p.free(*words, logits)
            logits = whole
        p.free(p.alloc("greedy draft tokens", seq=8), logits)

    def run(self, p: Program) -> int:
        """The head's layers. Gives the handle of its last hidden states."""
        embeds = self._reduce(p, p.alloc("draft token embeddings", token=self.hidden))
        state = None
        if not self.draft.target_layers:
            joined = p.alloc("embeddings and hidden states, joined", token=2 * self.hidden)
            state = self._linear(p, self._named("model.fc"), "projected embeddings and states", self.hidden)
            p.free(joined)
        first = True
        for qkv in (module for module in self.modules if isinstance(module, QKVLinear)):
            out = self._layer(p, qkv, joins=first and bool(self.draft.target_layers))
            p.free(state)
            state, first = out, False
        if not self.draft.target_layers:
            summed = p.alloc("hidden states and residual", token=self.hidden)
            p.free(state)
            state = summed
        p.free(embeds)
        assert state is not None
        return state

    def _layer(self, p: Program, qkv: QKVLinear, *, joins: bool) -> int:
        at = qkv.name.rpartition(".self_attn.")[0]
        normed = joined = None
        if joins:
            normed = p.alloc("normalized embeddings", token=self.hidden)
            states = p.alloc("normalized hidden states", token=self.hidden)
            joined = p.alloc("embeddings and hidden states, joined", token=2 * self.hidden)
            p.free(states)
        mixed = self._attention(p, qkv, self._named(f"{at}.self_attn.o_proj"))
        p.free(joined)
        out = self._mlp(p, self._named(f"{at}.mlp.gate_up_proj"), self._named(f"{at}.mlp.down_proj"))
        p.free(mixed, normed)
        return out

    def _attention(self, p: Program, qkv: QKVLinear, out: Linear) -> int:
        size = self.draft.head_size * self.item
        query = self.draft.num_heads // self.tp * size
        keys = max(1, self.draft.num_kv_heads // self.tp) * size
        fused = self._linear(p, qkv, "draft query, key and value", query + 2 * keys)
        eighth = self.config.kv_cache_dtype in FP8_CACHE
        rounded = p.alloc("draft query in 8 bits", token=query // self.item) if eighth else None
        attention = p.alloc("draft attention output", token=query)
        p.free(rounded)
        mixed = self._reduce(p, self._linear(p, out, "draft attention block output", self.hidden))
        p.free(attention, fused)
        return mixed

    def _mlp(self, p: Program, up: Linear, down: Linear) -> int:
        inner = self.draft.intermediate_size // self.tp * self.item
        fused = self._linear(p, up, "draft gate and up projection", 2 * inner)
        active = p.alloc("draft activation", token=inner)
        p.free(fused)
        out = self._reduce(p, self._linear(p, down, "draft MLP output", self.hidden))
        p.free(active)
        return out

    def _named(self, suffix: str) -> Linear:
        return next(m for m in self.modules if isinstance(m, Linear) and m.name.endswith(suffix))

    def _linear(self, p: Program, module: Linear | QKVLinear, what: str, width: int) -> int:
        run = self.runs[module.name]
        scratch = run.before(p)
        out = p.alloc(what, token=width)
        run.during(p)
        p.free(*scratch)
        return out

    def _reduce(self, p: Program, partial: int) -> int:
        if self.tp == 1:
            return partial
        total = p.alloc("sum over ranks", token=self.hidden)
        p.free(partial)
        return total
