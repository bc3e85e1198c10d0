"""What all parts of a forward pass share: sizes, norms, linear layers and their sums over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.engine.config import EngineConfig
from planner.memory.drafting import KeptStates
from planner.memory.layers import (
    DecoderLayer,
    deepstack_levels,
    replayed_layers,
    rotary_table,
    takes_media,
    uses_mrope,
)
from planner.memory.linear import LinearRun, linear_runs
from planner.memory.program import Part, Program
from planner.memory.step import Step
from planner.memory.styles import Style, style_of
from planner.model.modules import Linear
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.values import DTYPE_BYTES


class ForwardParts:
    """One rank's pass: what its layers are, and how its smallest steps are written into a `Program`."""

    def __init__(self, model: ModelSpec, share: RankShare, config: EngineConfig) -> None:
        self.model = model
        self.share = share
        self.config = config
        self.item = DTYPE_BYTES[config.dtype]
        self.hidden = model.text.hidden_size * self.item
        self.style: Style = style_of(model.language_class or model.architecture)
        self.layers: Sequence[DecoderLayer] = replayed_layers(model, share)
        self.linears: Mapping[str, LinearRun] = linear_runs(model, share, config)
        self.tp = config.tensor_parallel_size
        self.kept_embeds = takes_media(model, config) or share.pp_rank > 0
        table = rotary_table(model)
        self.mrope = table.shape[-1] * self.item if table is not None and uses_mrope(model) else 0
        self.rotary_bytes = 0
        self._rotated = False
        if table is not None and table.dtype == "float32" and self.item < 4 and config.enforce_eager:
            self.rotary_bytes = table.shape[0] * table.shape[-1] * 4
        self.step = Step()
        self._left = self._timed = False
        self._parts: dict[tuple[Step, bool], Part] = {}
        self.kept = KeptStates(model, self.hidden)
        self.deepstack = deepstack_levels(model) if self.kept_embeds and share.pp_rank == 0 else 0

    def _norm(self, p: Program, name: str, width: int, heads: int = 1) -> int:
        """RMS norm with a float32 weight, as PyTorch operations (vLLM ir/ops/layernorm.py rms_norm)."""
        wide = width // self.item * 4
        x = p.alloc("input in float32", token=wide)
        return self._normalize(p, name, x, width, heads)

    def _add_norm(self, p: Program, name: str) -> tuple[int, int]:
        """Residual add and RMS norm as PyTorch operations: normalized output and new residual."""
        wide = self.hidden // self.item * 4
        x, r = p.alloc("input in float32", token=wide), p.alloc("residual in float32", token=wide)
        total = p.alloc("sum in float32", token=wide)
        p.free(x, r)
        residual = p.alloc("residual", token=self.hidden)
        return self._normalize(p, name, total, self.hidden, 1), residual

    def _normalize(self, p: Program, name: str, x: int, width: int, heads: int) -> int:
        wide = width // self.item * 4
        square = p.alloc("squares", token=wide)
        variance = p.alloc("variance", token=4 * heads)
        p.free(square)
        shifted, root = p.alloc("variance + eps", token=4 * heads), p.alloc("reciprocal root", token=4 * heads)
        p.free(shifted)
        scaled = p.alloc("normalized in float32", token=wide)
        p.free(root)
        weighted = p.alloc("weighted in float32", token=wide)
        p.free(scaled)
        out = p.alloc(name, token=width)
        p.free(x, variance, weighted)
        return out

    def _linear(self, p: Program, name: str, what: str, width: int, *, reduced: bool = False) -> int:
        """A linear layer: its kernel's workspace and input copy, the output, and the sum over ranks of a row layer."""
        scratch = self.linears[name].before(p)
        out = p.alloc(what, token=width)
        self.linears[name].during(p)
        self.linears[name].after(p, scratch)
        return self._reduce(p, out, reduced and self.tp > 1)

    def _reduce(self, p: Program, partial: int, needed: bool) -> int:
        """An all-reduce writes a new tensor (vLLM distributed/device_communicators/cuda_communicator.py:273)."""
        if not needed:
            return partial
        total = p.alloc("sum over ranks", token=self.hidden)
        p.free(partial)
        return total

    def _tp(self, linear: Linear) -> int:
        return self.tp if linear.tensor_parallel and linear.parallelism != "replicated" else 1

    def _moe_tp(self) -> int:
        return self.config.tensor_parallel_size * self.config.data_parallel_size
