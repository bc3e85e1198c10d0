"""A longer fuzzing run than the tests have, with a log; coverage-guided where atheris is installed.

usage: python scripts/fuzz.py [--seconds N] [--seed N] [--targets config,command] [--log FILE] [--keep]
       python scripts/fuzz.py --atheris config [-- LIBFUZZER OPTIONS]       (needs `pip install atheris`)
Inputs that break are written to tests/fuzz/corpus with --keep; the tests replay them for ever.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["planner"]):
        import targets  # noqa: F401

from campaign import Report, attempt  # noqa: E402
from targets import TARGETS, TOLD  # noqa: E402


def keep(report: Report) -> None:
    """Write what broke into the corpus."""
    for what, text in report.broken:
        name = f"{report.target}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}.json"
        entry = {"target": report.target, "found": what, "input": text}
        (ROOT / "tests" / "fuzz" / "corpus" / name).write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def guided(target: str, options: list[str]) -> None:
    """Let atheris choose the bytes; the corpus's inputs of the target are its seeds."""
    run = TARGETS[target][0]

    def one(data: bytes) -> None:
        try:
            run(data.decode("utf-8", "surrogateescape"))
        except TOLD:
            return

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--log", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--atheris", choices=sorted(TARGETS))
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    if given.atheris:
        guided(given.atheris, given.options)
        return 0
    lines = [f"seed {given.seed}, {given.seconds:g} s a target, Python {platform.python_version()}"]
    broken = 0
    for target in given.targets.split(","):
        rng, report, ends = random.Random(f"{target} {given.seed}"), Report(target), time.monotonic() + given.seconds
        while time.monotonic() < ends:
            attempt(target, TARGETS[target][1](rng), report)
        told = ", ".join(f"{count} {kind}" for kind, count in report.told.most_common())
        lines.append(
            f"{target}: {report.inputs} inputs, {report.answers} answers, {told or 'none told'}; slowest "
            f"{report.slowest_seconds:.2f} s; {len(report.broken)} broken"
        )
        print(lines[-1], flush=True)
        lines += [f"  {what[:160]}" for what, _ in report.broken[:20]]
        broken += len(report.broken)
        if given.keep:
            keep(report)
    if given.log:
        given.log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
