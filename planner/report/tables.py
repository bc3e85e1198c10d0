"""Estimates and plans as CSV and Markdown: one row a plan, units in the column names."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from io import StringIO

from planner.foreign import table_cell, visible
from planner.memory.result import Estimate
from planner.report.fit import Launch
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS
from planner.search.plan import SearchResult
from planner.units import format_gib

Cell = str | int | float | bool | None

_ENGINE_COLUMNS = (
    "model_runner", "attention_backend", "dtype", "quantization", "tensor_parallel_size", "pipeline_parallel_size",
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "block_size",
    "gpu_memory_utilization", "enforce_eager",
)  # fmt: skip
_CACHE_COLUMNS = ("bytes_per_block", "bytes_per_token", "num_gpu_blocks", "capacity_tokens", "max_concurrency")


def estimate_row(estimate: Estimate) -> dict[str, Cell]:
    """One estimate flat: identity, verdict, resolved flags, every ledger term in bytes, the cache."""
    row: dict[str, Cell] = {
        "model": estimate.model,
        "gpus": estimate.gpus,
        "vllm_version": estimate.vllm_version,
        "verdict": estimate.verdict,
        "bottleneck": estimate.rejection.bottleneck if estimate.rejection else "",
        "message": estimate.rejection.message if estimate.rejection else "",
    }
    for name in _ENGINE_COLUMNS:
        row[name] = getattr(estimate.engine, name) if estimate.engine else None
    for term in dict.fromkeys(term.field for term in (*ENGINE_TERMS, *DEVICE_TERMS)):
        row[term] = getattr(estimate.per_gpu, term) if estimate.per_gpu else None
    for name in _CACHE_COLUMNS:
        row[name] = getattr(estimate.kv_cache, name) if estimate.kv_cache else None
    return row


def estimate_csv(estimate: Estimate) -> str:
    return csv_text([estimate_row(estimate)])


def fit_csv(result: SearchResult, launches: Sequence[Launch]) -> str:
    """A row a plan, best first; an empty search has the header of nothing and so is empty."""
    rows: list[dict[str, Cell]] = []
    for rank, (plan, launch) in enumerate(zip(result.plans, launches, strict=True), 1):
        row: dict[str, Cell] = {"rank": rank, **estimate_row(plan.estimate)}
        row["concurrency_at_full_length"] = plan.concurrency
        row["headroom_bytes"] = plan.headroom_bytes
        row["command"] = launch.command
        rows.append(row)
    return csv_text(rows)


def csv_text(rows: Sequence[dict[str, Cell]]) -> str:
    """CSV with one header; texts that a spreadsheet would take for a formula get an apostrophe before them."""
    if not rows:
        return ""
    buffer = StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _cell(value: Cell) -> Cell:
    if isinstance(value, str):
        return table_cell(value)
    return "" if value is None else value


def estimate_markdown(estimate: Estimate) -> str:
    """A heading, the verdict, and both ledgers as tables in GiB."""
    lines = [f"# {escaped(estimate.model)} on {escaped(estimate.gpus)}, vLLM {estimate.vllm_version}", ""]
    lines.append(f"Verdict: **{estimate.verdict}**")
    if estimate.rejection:
        lines += ["", f"{estimate.rejection.bottleneck}: {escaped(estimate.rejection.message)}"]
    if estimate.per_gpu:
        for heading, terms in (("Engine's ledger", ENGINE_TERMS), ("Device's ledger", DEVICE_TERMS)):
            lines += ["", f"| {heading} (one GPU) | bytes | |", "| --- | ---: | ---: |"]
            for term in terms:
                value = getattr(estimate.per_gpu, term.field)
                lines.append(f"| {f'{term.sign} {term.label}'.strip()} | {value:,} | {format_gib(value)} |")
    if estimate.kv_cache:
        cache = estimate.kv_cache
        lines += ["", "| KV cache | |", "| --- | ---: |"]
        lines += [f"| {name} | {getattr(cache, name):,} |" for name in _CACHE_COLUMNS]
    lines += ["", *(f"- warning: {escaped(warning)}" for warning in estimate.warnings)]
    return "\n".join(lines)


def fit_markdown(heading: str, result: SearchResult, launches: Sequence[Launch]) -> str:
    """Plans as a table with their commands below."""
    lines = [f"# {escaped(heading)}", ""]
    if not result.plans:
        lines.append("Nothing fits.")
    else:
        lines += ["| # | TP | PP | KV dtype | max_model_len | max_num_seqs | utilization | KV tokens | headroom |",
                  "| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for rank, plan in enumerate(result.plans, 1):
        engine, cache = plan.estimate.engine, plan.estimate.kv_cache
        assert engine is not None
        assert cache is not None
        lines.append(
            f"| {rank} | {engine.tensor_parallel_size} | {engine.pipeline_parallel_size} | {engine.kv_cache_dtype} "
            f"| {engine.max_model_len:,} | {engine.max_num_seqs} | {engine.gpu_memory_utilization:g} "
            f"| {cache.capacity_tokens:,} | {format_gib(plan.headroom_bytes)} |"
        )
    for rank, launch in enumerate(launches, 1):
        lines += ["", f"Plan {rank}:", "", *code_block(launch.command)]
    lines += ["", "| removed by | candidates | |", "| --- | ---: | --- |"]
    lines += [f"| {item.reason} | {item.count:,} | {escaped(item.example.message)} |" for item in result.rejected]
    return "\n".join(lines)


def code_block(text: str) -> list[str]:
    """The lines of a fenced block: its fence is longer than any run of backticks in the text, so nothing ends it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.split("\n"), fence]


def escaped(text: str) -> str:
    """Text that stays text in Markdown: one line, no markup, no table breaks."""
    flat = visible(" ".join(text.split()))
    return "".join("\\" + char if char in "\\`*_{}[]<>|#!&~" else char for char in flat)
