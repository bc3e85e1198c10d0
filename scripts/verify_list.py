"""Boot a list of plans with `vplan verify`, one after the other; or only say what each is predicted to do.

usage: python scripts/verify_list.py verification/eight_gpus.csv DIR [--vllm PATH] [--card h200]
       python scripts/verify_list.py verification/eight_gpus.csv --dry-run [--card h200]
A list has name, emulate (the small card, or nothing for this machine's own), flags and expected (starts or rejected).
DIR gets one JSON a row. Weights are dummies, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def rows(path: Path) -> list[dict[str, str]]:
    """The list."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def gpus_of(row: dict[str, str], card: str) -> str:
    """`--gpus` of a row: as many cards as its flags ask for."""
    words = shlex.split(row["flags"])
    sizes = [int(words[words.index(name) + 1]) for name in _PARALLEL if name in words]
    count = 1
    for size in sizes:
        count *= size
    return f"{row['emulate'] or card}:{count}"


_PARALLEL = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


def predicted(row: dict[str, str], card: str) -> dict[str, Any]:
    """What `vplan estimate` says of a row."""
    command = ["estimate", *shlex.split(row["flags"]), "--gpus", gpus_of(row, card), "--offline", "--format", "json"]
    done = subprocess.run([sys.executable, "-m", "planner", *command], cwd=ROOT, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(f"{row['name']}: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def verify_argv(row: dict[str, str], card: str, vllm: str) -> list[str]:
    """The words after `vplan` that boot a row."""
    where = ["--emulate", row["emulate"]] if row["emulate"] else ["--gpus", gpus_of(row, card)]
    flags = [*shlex.split(row["flags"]), *where, "--load-format", "dummy", "--vllm", vllm]
    return ["verify", *flags, "--offline", "--timeout", "900", "--format", "json"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--vllm", default="vllm")
    parser.add_argument("--card", default="h200")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.dry_run or given.directory is None:
        for row in rows(given.list):
            books = predicted(row, given.card).get("per_gpu") or {}
            sizes = [f"{name} {books.get(name, 0) / 2**30:.2f}" for name in _SHOWN]
            print(f"{row['name']}: {row['expected']}; GiB: {', '.join(sizes)}")
            print("  " + shlex.join(["vplan", *verify_argv(row, given.card, given.vllm)]))
        return 0
    given.directory.mkdir(parents=True, exist_ok=True)
    for row in rows(given.list):
        stem = given.directory / re.sub(r"\W+", "-", row["name"])
        argv = [*verify_argv(row, given.card, given.vllm), "--log", f"{stem}.log", "--output", f"{stem}.json"]
        code = subprocess.run([sys.executable, "-m", "planner", *argv], cwd=ROOT).returncode
        print(f"{row['name']}: exit code {code}", flush=True)
    return 0


_SHOWN = ("weights_memory_bytes", "peak_activation_bytes", "available_kv_cache_bytes", "used_after_startup_bytes")

if __name__ == "__main__":
    raise SystemExit(main())
