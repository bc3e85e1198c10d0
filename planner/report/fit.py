"""A search's answer as text and as the JSON of the contract (`vplan.fit/1`)."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from rich.text import Text

from planner.api import Request
from planner.report.text import bar, console_for, fit_table, ledger_table
from planner.search.plan import Plan, SearchResult
from planner.serve.command import serve_argv, shell_command


def plan_argv(request: Request, plan: Plan) -> list[str]:
    assert plan.assessment.config is not None
    return serve_argv(request.model, plan.args, plan.assessment.config)


def plan_record(request: Request, plan: Plan, rank: int) -> dict[str, Any]:
    """One plan as the contract states it."""
    argv, env = plan_argv(request, plan), dict(plan.args.env)
    estimate = plan.estimate
    assert estimate.kv_cache is not None
    assert estimate.engine is not None
    return {
        "rank": rank,
        "estimate": estimate.model_dump(mode="json", by_alias=True),
        "command": shell_command(argv, env),
        "argv": argv,
        "env": env,
        "objective": {
            "max_model_len": estimate.engine.max_model_len,
            "concurrency": plan.concurrency,
            "capacity_tokens": estimate.kv_cache.capacity_tokens,
        },
        "headroom_bytes": plan.headroom_bytes,
    }


def fit_json(request: Request, result: SearchResult, elapsed_seconds: float) -> str:
    document = {
        "schema": "vplan.fit/1",
        "plans": [plan_record(request, plan, rank) for rank, plan in enumerate(result.plans, 1)],
        "rejected": [
            {"reason": item.reason, "count": item.count, "example": {**item.example.model_dump(mode="json"), "flags": dict(item.flags)}}
            for item in result.rejected
        ],
        "evaluated": result.evaluated,
        "feasible": result.feasible,
        "elapsed_seconds": round(elapsed_seconds, 3),
        "notes": list(result.notes),
    }
    return json.dumps(document, indent=1)


def fit_text(request: Request, result: SearchResult, elapsed_seconds: float, *, color: bool = False) -> str:
    """The best plan's ledger and command, the other plans in a table, and what removed the rest."""
    buffer = StringIO()
    console = console_for(buffer, color=color)
    head = f"{request.model} on {request.gpus}, vLLM {request.version}: "
    if result.plans:
        console.print(Text(head) + Text(f"{len(result.plans)} plans", style="bold green"))
        console.print()
        console.print(fit_table([(rank, plan.estimate, plan.headroom_bytes) for rank, plan in enumerate(result.plans, 1)]))
        best = result.plans[0]
        assert best.estimate.per_gpu is not None
        console.print("\nPlan 1, the fullest GPU:")
        console.print(ledger_table(best.estimate.per_gpu))
        console.print(bar(best.estimate.per_gpu))
        for warning in best.estimate.warnings:
            console.print(Text("warning: ", style="yellow") + Text(warning))
    else:
        console.print(Text(head) + Text("nothing fits", style="bold red"))
    for note in result.notes:
        console.print(Text("note: ", style="cyan") + Text(note))
    console.print(f"\n{result.evaluated:,} candidates in {elapsed_seconds:.2f} s, {result.feasible:,} hold; removed by:")
    for item in result.rejected:
        console.print(f"  {item.count:>9,}  {item.reason}: {item.example.message}", soft_wrap=True)
        for fix in item.example.fix if not result.plans else ():
            console.print(f"             try: {fix}", soft_wrap=True)
    for rank, plan in enumerate(result.plans[:1], 1):
        console.print(f"\n# plan {rank}")
        console.print(Text(shell_command(plan_argv(request, plan), dict(plan.args.env))), soft_wrap=True)
    return buffer.getvalue()
