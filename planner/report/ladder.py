"""An out-of-memory ladder as text and as JSON (`vplan.ladder/1`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from typing import Any

from msgspec import Struct
from rich.table import Table
from rich.text import Text

from planner.memory.result import Estimate
from planner.report.text import console_for
from planner.search.ladder import Ladder, Step
from planner.search.rungs import Change, flag_text
from planner.units import format_bytes


class Correction(Struct, frozen=True):
    """A change that vLLM's own rules force, and the sentence with which it refuses the launch without it."""

    change: str
    refusal: str


class LadderAnswer(Struct, frozen=True):
    """`before`: the launch as pasted. `command`: with all changes. `after`: the estimate of that very line, None where
    nothing lets it start."""

    before: Estimate
    corrections: Sequence[Correction]
    ladder: Ladder | None
    command: str
    argv: list[str]
    env: dict[str, str]
    after: Estimate | None

    @property
    def starts(self) -> bool:
        return self.after is not None


def change_text(change: Change) -> str:
    """The change as options; another checkpoint and more cards in words."""
    parts = [f"{change.cards} cards"] if change.cards else []
    if change.checkpoint:
        return ", ".join([*parts, change.checkpoint])
    return ", ".join([*parts, *(flag_text(*field) for field in change.fields)])


def ladder_json(answer: LadderAnswer) -> str:
    document = {
        "schema": "vplan.ladder/1",
        "model": answer.before.model,
        "gpus": answer.ladder.gpus.spelling if answer.ladder else answer.before.gpus,
        "vllm_version": answer.before.vllm_version,
        "starts": answer.starts,
        "lacking_bytes": answer.ladder.lacking_bytes if answer.ladder else None,
        "corrections": [{"change": item.change, "refusal": item.refusal} for item in answer.corrections],
        "steps": [_step(step) for step in _steps(answer)],
        "command": answer.command,
        "argv": answer.argv,
        "env": answer.env,
        "before": answer.before.model_dump(mode="json"),
        "after": None if answer.after is None else answer.after.model_dump(mode="json"),
    }
    return json.dumps(document, indent=1)


def ladder_text(answer: LadderAnswer, *, color: bool = False) -> str:
    """What is lacking, the rungs with their bytes, and the command that starts."""
    buffer = StringIO()
    console = console_for(buffer, color=color, width=110)
    before, ladder = answer.before, answer.ladder
    console.print(Text(f"{before.model} on {before.gpus}, vLLM {before.vllm_version}: ") + _verdict(answer))
    if before.rejection is not None and not answer.corrections:
        console.print(Text(f"{before.rejection.bottleneck}: {before.rejection.message}"), soft_wrap=True)
    for item in answer.corrections:
        console.print(Text(f"vLLM refuses it before memory counts: {item.refusal}\n  {item.change}"), soft_wrap=True)
    if ladder is not None and ladder.lacking_bytes is not None and (ladder.steps or ladder.lacking_bytes):
        console.print(_lacking(ladder.lacking_bytes))
    if _steps(answer):
        console.print()
        console.print(_table(_steps(answer)))
    console.print()
    if answer.after is None:
        console.print("Nothing on the ladder lets it start: it takes a smaller model or larger cards.")
        return buffer.getvalue()
    console.print(Text(f"The command below {_outcome(answer.after)}:\n"), soft_wrap=True)
    console.print(Text(answer.command), soft_wrap=True)
    return buffer.getvalue()


def _verdict(answer: LadderAnswer) -> Text:
    if not answer.before.starts:
        return Text("does not start", style="bold red")
    if answer.ladder is not None and answer.ladder.steps:
        return Text("starts, but a full batch does not fit", style="bold yellow")
    return Text("starts as it is", style="bold green")


def _lacking(lacking_bytes: int) -> str:
    if lacking_bytes <= 0:
        return "The card has the memory; its share for the engine is wrong."
    return f"The fullest GPU lacks {format_bytes(lacking_bytes)}, whatever the utilization."


def _table(steps: Sequence[Step]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("change", overflow="fold")
    for heading in ("frees", "still lacking"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what it costs", overflow="fold")
    for rank, step in enumerate(steps, 1):
        lacking = format_bytes(step.lacking_bytes) if step.lacking_bytes else "-"
        words = (str(rank), change_text(step.change), format_bytes(step.freed_bytes), lacking, step.change.costs)
        table.add_row(*(Text(word) for word in words))
    return table


def _outcome(after: Estimate) -> str:
    gpu, cache, engine = after.per_gpu, after.kv_cache, after.engine
    assert gpu is not None
    assert cache is not None
    assert engine is not None
    need = gpu.used_after_startup_bytes + gpu.vision_encoder_runtime_peak_bytes
    return (
        f"starts on {after.gpus}: {format_bytes(need)} of {format_bytes(gpu.total_memory_bytes)} in use at a full "
        f"batch, {cache.max_concurrency:.1f} requests of {engine.max_model_len:,} tokens in the cache"
    )


def _steps(answer: LadderAnswer) -> tuple[Step, ...]:
    return answer.ladder.steps if answer.ladder is not None else ()


def _step(step: Step) -> dict[str, Any]:
    return {
        "change": change_text(step.change),
        "flags": dict(step.change.fields),
        "checkpoint": step.change.checkpoint,
        "gpus_per_node": step.change.cards,
        "freed_bytes": step.freed_bytes,
        "lacking_bytes": step.lacking_bytes,
        "costs": step.change.costs,
    }
