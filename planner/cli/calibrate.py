"""`vplan calibrate`: startup logs of your own vLLM against the prediction for the same command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from planner import api
from planner.cli.launched import request_from_command
from planner.cli.options import planning_options
from planner.cli.output import Output, write
from planner.cli.verify_output import render
from planner.errors import InputError
from planner.hardware.spec import Calibration
from planner.sources.calibration import NONE, default_path, read_calibration
from planner.verify.calibration import command_in, entry_of, merged, write_calibration
from planner.verify.compare import compare
from planner.verify.outcome import Outcome
from planner.verify.readings import Reading, clean, find_failure, read_log, version_in


@planning_options(required=False)
def calibrate(
    request: Any,
    logs: Annotated[list[Path], typer.Argument(help="Startup logs of vLLM servers.", show_default=False)],
    command: Annotated[
        str | None,
        typer.Option("--command", help="How they were started, where the log does not say.", show_default=False),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="The calibration to add to; yours by default.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare only; write nothing.")] = False,
    output: Output = None,
) -> None:
    """Compare startup logs with the prediction for the same command, and keep what the machine took beyond it.

    Example: vplan calibrate vllm.log --gpus l20:1
    """
    parts: list[str] = []
    entries: list[Calibration] = []
    for log in logs:
        text, entry = _compared(log, request, command)
        parts.append(f"# {log}\n{text}")
        entries.append(entry)
    path = save or default_path()
    found = merged(() if dry_run else read_calibration(path), entries)
    for entry in found:
        shift = ", ".join(f"{term.removesuffix('_bytes')} +{size}" for term, size in entry.add_bytes.items())
        parts.append(
            f"{entry.gpu}, vLLM {entry.vllm_version}, {entry.model}: {shift or 'no term above its prediction'} (bytes)"
        )
    if not dry_run:
        write_calibration(path, found)
        parts.append(f"saved in {path}")
    write("\n\n".join(parts), output)


def _compared(log: Path, request: Any, command: str | None) -> tuple[str, Calibration]:
    """The comparison of one log as text, and what it adds."""
    try:
        lines = [clean(line) for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError as error:
        raise InputError(f"{log}: {error.strerror or error}") from None
    version = request.vllm_version or version_in(lines)
    if version is None:
        raise InputError(f"{log}: it does not say which vLLM wrote it; give --vllm-version")
    asked = _request(log, lines, request.model_copy(update={"vllm_version": version, "calibration": NONE}), command)
    failure = find_failure(lines)
    if failure is not None:
        raise InputError(f"{log}: this engine did not start: {failure.message}")
    reading: Reading = read_log(lines, version)
    estimate = api.estimate(asked).estimate
    outcome = Outcome("started", figures=reading.figures, words=reading.words)
    text = render("text", estimate, outcome, compare(estimate, outcome))
    return text, entry_of(estimate, reading, api.load_gpus(asked).gpu.name, version)


def _request(log: Path, lines: list[str], beside: Any, command: str | None) -> Any:
    """The flags of the log's engine: of its own line, of --command, or given beside."""
    if command is None:
        words = command_in(lines)
        command = shlex.join(words) if words else None
    asked = beside if command is None else request_from_command(command, beside)
    if not asked.model or (command is None and not asked.given):
        raise InputError(f"{log}: it does not tell its flags; give --command or the same flags")
    return asked if asked.gpus else asked.model_copy(update={"gpus": "local"})
