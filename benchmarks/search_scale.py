"""How much a search looks at for its seconds: one fit, a million candidates, and whole catalogs of models and cards.

usage: python benchmarks/search_scale.py [--rounds N] [--models N] [--jobs N]

Wall and processor seconds of each, the least of N rounds, and two ratios of processor seconds, which other work on the
machine disturbs less: to `import numpy` in a process of its own, and to a loop that asks `estimate` for each candidate,
of which a sample is timed. The last line is the most memory that any process of the benchmark held.
Limits of the project, on two idle cores: a million candidates in 3 s and 1 GiB, 200 models on every card of the catalog
with 1 to 16 of it in 10 s.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from planner import api
from planner.engine.args import EngineArgs
from planner.errors import PlannerError
from planner.memory.assess import assess
from planner.model.build import build_model
from planner.search.search import search
from planner.search.select import select
from planner.search.space import BATCHED_TOKENS, SEQUENCES, UTILIZATIONS, SearchOptions, Workload
from planner.sources.hardware_catalog import load_hardware_catalog
from planner.sources.model_catalog import ModelCatalog, load_model_catalog
from planner.values import Rejected

REQUEST = api.Request(model="Qwen/Qwen2.5-VL-72B-Instruct-AWQ", gpus="l20:8")
VERSION = api.DEFAULT_VERSION
SAMPLE = 24
SELECTED = 10
"""`select` is timed on every so many of the models."""


def timed(work: Callable[[], int]) -> tuple[int, float, float]:
    """What `work` counted, its wall seconds, and the processor seconds of this process and its children."""
    wall, processor = time.perf_counter(), _processor_seconds()
    count = work()
    return count, time.perf_counter() - wall, _processor_seconds() - processor


def _processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def numpy_import() -> int:
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return 1


def fit(*vary: str) -> int:
    """A search from a model that nothing has been worked out for; the candidates that it judged."""
    return search(api.load_spec(REQUEST), api.load_gpus(REQUEST), SearchOptions(vary=vary), VERSION).evaluated


def estimates() -> int:
    """Candidates of the fit's grid, one `estimate` each."""
    model, gpus, rng = api.load_spec(REQUEST), api.load_gpus(REQUEST), random.Random(1)
    for _ in range(SAMPLE):
        tokens = rng.choice(BATCHED_TOKENS)
        args = EngineArgs(
            tensor_parallel_size=rng.choice((2, 4, 8)), kv_cache_dtype=rng.choice(("auto", "fp8")),
            max_num_seqs=rng.choice([size for size in SEQUENCES if size <= tokens]), max_num_batched_tokens=tokens,
            gpu_memory_utilization=rng.choice(UTILIZATIONS), max_model_len=rng.choice((1024, 8192, 32768)),
        )  # fmt: skip
        assess(model, gpus, args, VERSION)
    return SAMPLE


@cache
def _catalog() -> ModelCatalog:
    return load_model_catalog()


def choices(name: str) -> int:
    """Every card of the catalog with 1 to 16 of it for one model; the choices judged."""
    files = _catalog().find(name)
    assert files is not None
    options = SearchOptions(args=EngineArgs(max_model_len=4096), workload=Workload(concurrency=4))
    try:
        return len(select(build_model(files), load_hardware_catalog().all(), options, VERSION))
    except (PlannerError, Rejected):
        return 0


def catalog_by_catalog(names: tuple[str, ...], jobs: int) -> int:
    with ProcessPoolExecutor(jobs) as pool:
        return sum(pool.map(choices, names))


def verdicts(names: tuple[str, ...], jobs: int) -> int:
    """The same cards and counts, held or not by which layout; the verdicts given."""
    options = SearchOptions(args=EngineArgs(max_model_len=4096), workload=Workload(concurrency=4))
    request = api.Request(model=names[0], gpus="", offline=True)
    found = api.matrix(request, options, models=names[1:], jobs=jobs).found
    return sum(len(fits) for fits in found.values() if not isinstance(fits, str))


def _least(rounds: int, work: Callable[[], int]) -> tuple[int, float, float]:
    return min((timed(work) for _ in range(rounds)), key=lambda found: found[2])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    everything = _catalog().ids()
    step = max(1, len(everything) // asked.models)
    names = everything[::step][: asked.models]
    fit()
    unit = _least(asked.rounds, numpy_import)
    each = _least(asked.rounds, estimates)
    rows = [
        ("import numpy", *unit),
        (f"{SAMPLE} candidates, one estimate each", *each),
        ("fit, 72B AWQ on 8 L20", *_least(asked.rounds, fit)),
        ("fit, also eager and block sizes", *_least(asked.rounds, lambda: fit("eager", "block-size"))),
    ]
    print(f"{'':36s} {'amount':>10s} {'wall s':>8s} {'CPU s':>8s} {'x numpy':>8s} {'faster than estimates':>22s}")
    for name, count, wall, processor in rows:
        ratio = each[2] / each[0] * count / processor
        told = "" if name == "import numpy" else f"{ratio:,.0f}x"
        print(f"{name:36s} {count:10,d} {wall:8.2f} {processor:8.2f} {processor / unit[2]:8.1f} {told:>22s}")
    for what, chosen, work in (("select", names[::SELECTED], catalog_by_catalog), ("matrix", names, verdicts)):
        count, wall, processor = timed(lambda work=work, chosen=chosen: work(chosen, asked.jobs))  # type: ignore[misc]
        what = f"{what}, {len(chosen)} models, every card"
        print(f"{what:36s} {count:10,d} {wall:8.2f} {processor:8.2f} {processor / unit[2]:8.1f}")
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"most memory of a process: {most / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
