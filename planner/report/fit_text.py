"""A search's answer as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.text import Text

from planner.report.fit import Launch
from planner.report.text import bar, console_for, fit_table, ledger_table
from planner.search.plan import SearchResult


def fit_text(
    heading: str, result: SearchResult, launches: Sequence[Launch], elapsed_seconds: float, *, color: bool = False
) -> str:
    """The best plan's ledger and command, the other plans in a table, and what removed the rest."""
    buffer = StringIO()
    console = console_for(buffer, color=color)
    if result.plans:
        many = "1 plan" if len(result.plans) == 1 else f"{len(result.plans)} plans"
        console.print(Text(f"{heading}: ") + Text(many, style="bold green"))
        console.print()
        rows = [(rank, plan.estimate, plan.headroom_bytes) for rank, plan in enumerate(result.plans, 1)]
        console.print(fit_table(rows))
        best = result.plans[0].estimate
        assert best.per_gpu is not None
        console.print("\nPlan 1, the fullest GPU:")
        console.print(ledger_table(best.per_gpu))
        console.print(bar(best.per_gpu))
        for warning in best.warnings:
            console.print(Text("warning: ", style="yellow") + Text(warning))
    else:
        console.print(Text(f"{heading}: ") + Text("nothing fits", style="bold red"))
    for note in result.notes:
        console.print(Text("note: ", style="cyan") + Text(note))
    console.print(
        f"\n{result.evaluated:,} candidates in {elapsed_seconds:.2f} s, {result.feasible:,} hold; the others fell to:"
    )
    for item in result.rejected:
        console.print(f"  {item.count:>9,}  {item.reason}: {item.example.message}", soft_wrap=True)
        for fix in item.example.fix if not result.plans else ():
            console.print(f"             try: {fix}", soft_wrap=True)
    for rank, launch in enumerate(launches[:1], 1):
        console.print(f"\n# plan {rank}")
        console.print(Text(launch.command), soft_wrap=True)
    return buffer.getvalue()
