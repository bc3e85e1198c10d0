"""What a search returns: ranked plans, and what removed the candidates that are none."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment
from planner.memory.result import Estimate
from planner.search.workload import PlanDemand
from planner.values import Bottleneck, Rejection, Value


class Plan(Struct, frozen=True):
    """One way to serve. `args` are the flags that make it; `concurrency` the requests of max_model_len tokens that the
    caches of all replicas hold at once; `headroom_bytes` what the device keeps free, the encoder's run-time peak set
    aside; `demand` what the workload's own lengths ask of it."""

    args: EngineArgs
    assessment: Assessment
    concurrency: int
    headroom_bytes: int
    demand: PlanDemand | None = None

    @property
    def gpus(self) -> int:
        """Cards that the plan takes."""
        args = self.args
        return args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size

    @property
    def estimate(self) -> Estimate:
        return self.assessment.estimate


class RejectedCount(Value):
    """Candidates that one bottleneck removed, with one of them spelt out."""

    reason: Bottleneck
    count: int
    example: Rejection
    flags: tuple[tuple[str, str | int | float], ...] = ()


class SearchResult(Struct, frozen=True):
    """Plans, best first; every other of the `evaluated` candidates is counted in `rejected`."""

    plans: tuple[Plan, ...]
    feasible: int
    rejected: tuple[RejectedCount, ...]
    evaluated: int
    notes: tuple[str, ...] = ()
