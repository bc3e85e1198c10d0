"""Whole-process times of the two commands people run most, next to a bare interpreter that imports numpy.

usage: python benchmarks/start_up.py [ROUNDS]      prints the least and the median of ROUNDS runs, in seconds
Limits of the project: `vplan estimate` 0.35 s, a full `vplan fit` 0.60 s, on two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "Qwen/Qwen2.5-VL-72B-Instruct-AWQ"
PYTHON = sys.executable


def run(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "fit.json"
        fit = [PYTHON, "-m", "planner", "fit", "--model", MODEL, "--gpus", "l20:8", "--offline", "--format", "json"]
        cases = {
            "python -c pass": [PYTHON, "-c", "pass"],
            "python -c 'import numpy'": [PYTHON, "-c", "import numpy"],
            "vplan estimate": [
                PYTHON, "-m", "planner", "estimate", "--model", MODEL, "--gpus", "l20:8", "--tensor-parallel-size", "8",
                "--max-model-len", "32768", "--offline",
            ],
            "vplan fit": [*fit, "--output", str(answer)],
        }  # fmt: skip
        for name, arguments in cases.items():
            run(arguments)
            times = [run(arguments) for _ in range(rounds)]
            print(f"{name:28s} least {min(times):.3f}  median {statistics.median(times):.3f}")
        print(f"{'candidates in that fit':28s} {json.loads(answer.read_text())['evaluated']:,}")


if __name__ == "__main__":
    main()
