"""`vplan monitor`: a running engine against its plan, live, in a file, and for Prometheus."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import Output, check_format, write
from planner.cli.shared_flags import Cards, PlanBeside, Rank
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.monitor.planned import Planned
    from planner.monitor.sample import Sample
    from planner.monitor.session import Session

SCHEMA = "vplan.monitor/1"


def monitor(
    url: Annotated[str, typer.Option("--url", help="The server, http://HOST:PORT.")] = "http://127.0.0.1:8000",
    plan: PlanBeside = None,
    rank: Rank = 1,
    once: Annotated[bool, typer.Option("--once", help="One look, then stop.")] = False,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between looks.")] = 2.0,
    duration: Annotated[
        float | None, typer.Option("--duration", help="Stop after so many seconds.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that an answer may take.")] = 5.0,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Append every look to this file.", show_default=False)
    ] = None,
    prometheus_port: Annotated[
        int | None,
        typer.Option("--prometheus-port", help="Export plan and actual on this loopback port.", show_default=False),
    ] = None,
    cards: Cards = None,
    grafana: Annotated[bool, typer.Option("--grafana", help="Print the Grafana dashboard and stop.")] = False,
    format: Annotated[str, typer.Option("--format", help="text or json (a line for each look).")] = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Watch memory, cache, queue and tokens per second of a vLLM server, beside the plan that it was started from.

    Goes on through restarts, missing metrics, hung servers, full disks and lost cards, and says so. Exit code 4 with
    --once where the server does not answer.

    Example: vplan monitor --url http://127.0.0.1:8000 --plan plan.json --csv load.csv
    """
    from planner.monitor.cards import parse_cards
    from planner.monitor.exporter import dashboard
    from planner.monitor.planned import read_plan
    from planner.monitor.session import Session

    check_format(format, ("text", "json"))
    if grafana:
        write(dashboard(), output)
        return
    if interval < 0.1 or timeout <= 0 or (duration is not None and duration <= 0):
        raise InputError("--interval must be at least 0.1 s, --timeout and --duration more than 0")
    planned = None if plan is None else read_plan(plan, rank)
    with ExitStack() as stack:
        session = Session(stack, url, timeout, planned, csv, prometheus_port, only=parse_cards(cards))
        if once:
            _once(session, format, output)
        else:
            _watch(session, interval, duration, format)


def _once(session: Session, format: str, output: str | None) -> None:  # noqa: A002
    sample = session.look()
    if format == "json":
        write(json.dumps(_document(sample, session.planned), indent=1), output)
    else:
        from io import StringIO

        from planner.cli.monitor_view import view
        from planner.report.text import console_for

        buffer = StringIO()
        console_for(buffer, color=False).print(view(sample, session.planned, session.server.url))
        write(buffer.getvalue(), output)
    if sample.server.problem is not None:
        raise typer.Exit(4)


def _watch(session: Session, interval: float, duration: float | None, format: str) -> None:  # noqa: A002
    end = None if duration is None else time.monotonic() + duration
    show = _json_lines if format == "json" else _live if sys.stdout.isatty() else _warnings_only
    try:
        show(session, interval, end)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def _json_lines(session: Session, interval: float, end: float | None) -> None:
    for sample in _samples(session, interval, end):
        print(json.dumps(_document(sample, session.planned)), flush=True)


def _warnings_only(session: Session, interval: float, end: float | None) -> None:
    """Without a terminal: a line at the beginning and when the warnings change."""
    before: tuple[str, ...] | None = None
    for sample in _samples(session, interval, end):
        if sample.warnings != before:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(sample.time))
            print(f"{stamp} {'; '.join(sample.warnings) or 'all is well'}", flush=True)
            before = sample.warnings


def _live(session: Session, interval: float, end: float | None) -> None:
    from rich.live import Live

    from planner.cli.monitor_view import view

    with Live(auto_refresh=False, screen=False) as live:
        for sample in _samples(session, interval, end):
            live.update(view(sample, session.planned, session.server.url), refresh=True)


def _samples(session: Session, interval: float, end: float | None) -> Iterator[Sample]:
    while True:
        began = time.monotonic()
        yield session.look()
        pause = interval - (time.monotonic() - began)
        if end is not None and time.monotonic() + max(pause, 0.0) >= end:
            return
        time.sleep(max(pause, 0.0))


def _document(sample: Sample, planned: Planned | None) -> dict[str, object]:
    plan = None if planned is None else planned.model_dump(mode="json")
    return {"schema": SCHEMA, **sample.model_dump(mode="json"), "plan": plan}
