"""Whether the bounds by which `vplan matrix` decides hold, engine by engine, against the whole replay of `select`.

usage: python benchmarks/matrix_bounds.py [--every N] [--first N] [--concurrency N] [--max-model-len N]

For every N-th model of the catalog, each card and tensor parallelism: what each step of the bounds says, and what the
exact weights give, beside the requests that the replayed engine holds. Prints what contradicts, and how many engines
were compared. Exit code 1 where something contradicts. A third of the catalog takes some eight minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from planner import api
from planner.engine.args import EngineArgs
from planner.errors import PlannerError
from planner.hardware.spec import GpuSpec
from planner.model.spec import ModelSpec
from planner.search.select_fits import Bounds, Fits
from planner.search.select_judge import TENSOR_PARALLEL, judge_of
from planner.search.space import SearchOptions, Workload
from planner.sources.hardware_catalog import load_hardware_catalog
from planner.sources.model_catalog import load_model_catalog
from planner.values import Rejected


def contradictions(model: ModelSpec, cards: tuple[GpuSpec, ...], options: SearchOptions) -> Iterator[str | None]:
    """For each engine what contradicts the replay, or None."""
    bounded, replayed = (Fits(judge_of(model, cards, options, api.DEFAULT_VERSION), 1) for _ in range(2))
    for gpu in cards:
        for tp in TENSOR_PARALLEL if gpu.vendor == "nvidia" else ():
            try:
                config = bounded.judge.shared(bounded.judge.config(gpu, tp, 1), gpu)
                held = replayed.replayed(gpu, config)
            except (Rejected, PlannerError):
                continue
            try:
                steps = list(bounded.narrowing(gpu, config))
            except (Rejected, PlannerError):
                steps = [Bounds(0, 0)]
            wrong = [(place, step) for place, step in enumerate(steps) if not step.least <= held <= step.most]
            yield f"{model.name} {gpu.name} tp {tp}: {held} requests, not {wrong}" if wrong else None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--max-model-len", type=int, default=4096)
    asked = parser.parse_args()
    cards = load_hardware_catalog().all()
    workload = Workload(concurrency=asked.concurrency)
    options = SearchOptions(args=EngineArgs(max_model_len=asked.max_model_len), workload=workload)
    models = engines = wrong = 0
    for name in load_model_catalog().ids()[asked.first :: asked.every]:
        try:
            model = api.load_spec(api.Request(model=name, gpus="", offline=True))
        except (Rejected, PlannerError):
            continue
        models += 1
        for found in contradictions(model, cards, options):
            engines += 1
            if found:
                wrong += 1
                print(found, flush=True)
    print(f"{models} models, {engines} engines, {wrong} outside their bounds")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
