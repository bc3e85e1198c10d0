"""The summary of a load test as text."""

from __future__ import annotations

from typing import Any

from planner.load.run import Files
from planner.units import format_gib


def loadtest_text(document: dict[str, Any], files: Files, drawn: str) -> str:
    """What was sent and answered, how fast, and the memory beside the plan. `drawn`: what became of the picture."""
    setup, requests, rates = document["setup"], document["requests"], document["rates"]
    lines = [
        f"{setup['model']} at {setup['url']}, {document['seconds']:.1f} s"
        + (" (interrupted)" if document["interrupted"] else ""),
        f"requests: {requests['sent']} sent, {requests['answered']} answered, {requests['failed']} failed, "
        f"{requests['cancelled']} cancelled at the end"
        + (f", {requests['left_out']} left out (too many at once)" if requests["left_out"] else ""),
        f"per second: {rates['requests_per_s']:g} requests, {rates['prompt_tokens_per_s']:,.0f} prompt tokens, "
        f"{rates['completion_tokens_per_s']:,.0f} generated tokens",
    ]
    lines += [f"  {count} times: {problem}" for problem, count in requests["problems"].items()]
    lines += [
        "",
        f"{'':8}{'answered':>9}  {'first token, ms':>24}  {'between tokens, ms':>24}  {'whole answer, s':>20}",
    ]
    lines.append(f"{'':8}{'':>9}" + f"  {'p50 / p90 / p99':>24}" * 2 + f"  {'p50 / p90 / p99':>20}")
    for kind, found in document["latency"].items():
        lines.append(
            f"{kind:8}{found['answered']:>9}  {_shares(found['ttft_s'], 1e3):>24}"
            f"  {_shares(found['itl_mean_s'], 1e3):>24}  {_shares(found['duration_s'], 1.0):>20}"
        )
    lines += ["", *_memory(document["memory"]), _server(document["server"])]
    lines += [f"! {warning}" for warning in document["warnings"]]
    written = ", ".join(str(file) for file in (files.requests, files.looks, files.summary))
    return "\n".join([*lines, "", f"written: {written}", f"picture: {drawn}"])


def _shares(found: dict[str, float] | None, scale: float) -> str:
    if found is None:
        return "-"
    return " / ".join(f"{found[share] * scale:,.1f}" for share in ("p50", "p90", "p99"))


def _memory(memory: dict[str, Any]) -> list[str]:
    lines = []
    for card in memory["cards"]:
        before, peak, total = (
            card[name] - card["reserved_bytes"] for name in ("before_bytes", "peak_bytes", "total_bytes")
        )
        lines.append(
            f"GPU {card['gpu']}: {format_gib(before)} before the load, {format_gib(peak)} at most, "
            f"of {format_gib(total)}"
        )
    if not lines:
        lines.append("no GPU of this machine was read")
    plan = memory["plan"]
    if plan is not None:
        low, high = plan["used_after_startup_bytes_interval"]
        verdict = {True: "within the plan", False: "ABOVE THE PLAN", None: "not compared"}[memory["within_plan"]]
        lines.append(
            f"plan: {format_gib(plan['used_after_startup_bytes'])} after startup "
            f"({format_gib(low)} to {format_gib(high)}), {format_gib(plan['peak_bytes'])} at most: {verdict}"
        )
    return lines


def _server(server: dict[str, Any]) -> str:
    usage = server["kv_cache_usage_peak"]
    shown = [
        f"KV cache {'?' if usage is None else f'{usage:.1%}'}",
        *(
            f"{_count(server[name])} {word}"
            for name, word in (("running_peak", "running"), ("waiting_peak", "waiting"))
        ),
    ]
    return f"server at most: {', '.join(shown)}; {_count(server['preemptions'])} preemptions; {server['looks']} looks"


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"
