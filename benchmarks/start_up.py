"""Whole-process times of the two commands people run most, next to a bare interpreter that imports numpy.

usage: python benchmarks/start_up.py [ROUNDS]      prints a Markdown table and the machine it was made on
Every round runs every case once, so that what else the machine does falls on all of them. Limits of the project:
`vplan estimate` 0.35 s, a full `vplan fit` 0.60 s, where `import numpy` takes 0.15 s on two cores.
"""

from __future__ import annotations

import compileall
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "Qwen/Qwen2.5-VL-72B-Instruct-AWQ"
PLAN = ["--model", MODEL, "--gpus", "l20:8", "--offline"]
NUMPY = "python -c 'import numpy'"

Times = list[tuple[float, float]]


def cases(answer: Path) -> dict[str, list[str]]:
    """Command lines by the name they get in the table; a fit writes its JSON to `answer`."""
    python, vplan = [sys.executable], [sys.executable, "-m", "planner"]
    estimate = [*vplan, "estimate", *PLAN, "--tensor-parallel-size", "8"]
    return {
        "python -c pass": [*python, "-c", "pass"],
        NUMPY: [*python, "-c", "import numpy"],
        "vplan estimate --format json": [*estimate, "--format", "json"],
        "vplan estimate": estimate,
        "vplan fit --format json": [*vplan, "fit", *PLAN, "--format", "json", "--output", str(answer)],
        "vplan fit": [*vplan, "fit", *PLAN],
    }


def run(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock, and seconds of a processor, of one process."""
    before, started = _processor_seconds(), time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - started, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(found: Mapping[str, Times]) -> str:
    """Least and median seconds, least processor seconds, and each against those of importing numpy."""
    lines = [
        "| process | least, s | median, s | processor, s | least / numpy | processor / numpy |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    wall, processor = (min(one[index] for one in found[NUMPY]) for index in (0, 1))
    for name, times in found.items():
        clock, used = [one[0] for one in times], min(one[1] for one in times)
        lines.append(
            f"| `{name}` | {min(clock):.3f} | {statistics.median(clock):.3f} | {used:.3f} "
            f"| {min(clock) / wall:.2f} | {used / processor:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    compileall.compile_dir(ROOT / "planner", quiet=2)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "fit.json"
        commands = cases(answer)
        for arguments in commands.values():
            run(arguments)
        found: dict[str, Times] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, arguments in commands.items():
                found[name].append(run(arguments))
        evaluated = json.loads(answer.read_text())["evaluated"]
    print(table(found))
    print()
    print(
        f"{rounds} rounds; Python {platform.python_version()}, {os.cpu_count()} processors; "
        f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {evaluated:,} candidates in the fit"
    )


if __name__ == "__main__":
    main()
