"""A sample on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.monitor.planned import Planned
from planner.monitor.sample import CardUse, Sample
from planner.units import GIB, format_gib

_BAR_CELLS = 40


def view(sample: Sample, planned: Planned | None, url: str) -> RenderableType:
    """Cards with bars against the plan, requests, cache and rates, warnings."""
    server = sample.server
    head = Text(f"{server.model or '?'} at {url}", style="bold")
    state = Text("no answer", style="bold red") if server.problem else Text("serving", style="bold green")
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for label, value in (
        (
            "requests",
            f"{_number(server.running)} running, {_number(server.waiting)} waiting, "
            f"{_number(server.requests_finished)} done",
        ),
        (
            "tokens per second",
            f"{_number(sample.generation_tokens_per_s)} generated, {_number(sample.prompt_tokens_per_s)} read",
        ),
        ("KV cache", _cache(sample, planned)),
        ("preemptions", _number(server.preemptions)),
        ("prefix cache hits", _share(server.prefix_cache_hits, server.prefix_cache_queries)),
        ("media cache hits", _share(server.mm_cache_hits, server.mm_cache_queries)),
    ):
        table.add_row(label, value)
    if planned is not None and planned.lines:
        table.add_row("plan for a GPU", _plan(planned))
    rows: list[RenderableType] = [head + Text("  ") + state, table]
    rows += [_card(card, planned) for card in sample.cards]
    rows += [Text("! " + warning, style="yellow") for warning in sample.warnings]
    return Group(*rows)


def _plan(planned: Planned) -> str:
    """The ledger's lines, what they add up to, and the most that media may make of it."""
    lines = " + ".join(f"{name} {size_bytes / GIB:.2f}" for name, size_bytes in planned.lines)
    return f"{lines} = {format_gib(planned.used_bytes)}, at most {format_gib(planned.peak_bytes)}"


def _card(card: CardUse, planned: Planned | None) -> Text:
    if card.used_bytes is None or not card.total_bytes:
        return Text(f"GPU {card.index}: {card.problem or 'no figures'}", style="red")
    filled = round(card.used_bytes / card.total_bytes * _BAR_CELLS)
    held = card.used_bytes
    if planned is not None:
        held -= planned.reserved_bytes(card.total_bytes)
    text = Text(f"GPU {card.index} [{'#' * filled}{'.' * (_BAR_CELLS - filled)}] {format_gib(held)}")
    if planned is not None:
        low, high = planned.used_interval
        inside = held <= planned.peak_bytes
        span = format_gib(planned.used_bytes) if low == high else f"{format_gib(low)} to {format_gib(high)}"
        text.append(f" (plan {span})", style="green" if inside else "red")
    if card.utilization_percent is not None:
        text.append(f", busy {card.utilization_percent} %")
    for pid, held_bytes in card.processes:
        text.append(f"\n      process {pid}: {'memory not told' if held_bytes is None else format_gib(held_bytes)}")
    return text


def _cache(sample: Sample, planned: Planned | None) -> str:
    usage = sample.server.kv_cache_usage
    if usage is None:
        return "?"
    if planned is None:
        return f"{usage:.1%} in use"
    held = usage * planned.capacity_tokens
    return f"{usage:.1%} in use, about {held:,.0f} of {planned.capacity_tokens:,} tokens"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _share(part: float | None, whole: float | None) -> str:
    return "?" if part is None or not whole else f"{part / whole:.1%}"
