"""Estimates and plans for eyes: a ledger, a bar, a verdict, a command. The room that says GiB."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.memory.result import Estimate, PerGpu
from planner.report.terms import DEVICE_TERMS, ENGINE_TERMS, Term
from planner.units import GIB, format_bytes, format_gib

_BAR_CELLS = 60


def console_for(text: StringIO, *, color: bool, width: int = 100) -> Console:
    return Console(
        file=text, width=width, force_terminal=color, no_color=not color, highlight=False, markup=False, emoji=False
    )


def estimate_text(estimate: Estimate, command: str, *, color: bool = False) -> str:
    """Verdict, both ledgers of the fullest rank, the cache, warnings and the command."""
    buffer = StringIO()
    console = console_for(buffer, color=color)
    _headline(console, estimate)
    if estimate.per_gpu is not None:
        console.print()
        console.print(ledger_table(estimate.per_gpu))
        console.print(bar(estimate.per_gpu))
    if estimate.kv_cache is not None:
        _cache_lines(console, estimate)
    _rejection_lines(console, estimate)
    for warning in estimate.warnings:
        console.print(Text("warning: ", style="yellow") + Text(warning))
    console.print()
    console.print(Text(command), soft_wrap=True)
    return buffer.getvalue()


def _headline(console: Console, estimate: Estimate) -> None:
    style = "bold green" if estimate.starts else "bold red"
    console.print(
        Text(f"{estimate.model} on {estimate.gpus}, vLLM {estimate.vllm_version}: ")
        + Text(estimate.verdict, style=style)
    )
    engine = estimate.engine
    if engine is None:
        return
    sizes = f"TP {engine.tensor_parallel_size}, PP {engine.pipeline_parallel_size}, {engine.dtype}"
    quantization = engine.quantization or "unquantized"
    console.print(
        f"{sizes}, {quantization}, {engine.attention_backend}, model runner {engine.model_runner}, "
        f"max_model_len {engine.max_model_len:,}, max_num_seqs {engine.max_num_seqs:,}, "
        f"max_num_batched_tokens {engine.max_num_batched_tokens:,}, utilization {engine.gpu_memory_utilization:g}"
    )


def ledger_table(per_gpu: PerGpu) -> Table:
    """Both ledgers side by side, each line in GiB; intervals where a term is uncertain."""
    table = Table(title=None, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in (
        ("engine's ledger (one GPU)", "left"),
        ("GiB", "right"),
        ("device's ledger (one GPU)", "left"),
        ("GiB", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    left = [_cells(per_gpu, term) for term in ENGINE_TERMS]
    right = [_cells(per_gpu, term) for term in DEVICE_TERMS]
    for index in range(max(len(left), len(right))):
        one = left[index] if index < len(left) else ("", "")
        two = right[index] if index < len(right) else ("", "")
        table.add_row(*one, *two)
    return table


def _cells(per_gpu: PerGpu, term: Term) -> tuple[str, str]:
    value = getattr(per_gpu, term.field)
    interval = getattr(per_gpu, f"{term.field}_interval", None)
    figure = f"{value / GIB:.3f}"
    if interval is not None and interval[0] != interval[1]:
        figure += f" ({interval[0] / GIB:.2f}-{interval[1] / GIB:.2f})"
    return f"{term.sign} {term.label}".strip(), figure


def bar(per_gpu: PerGpu) -> Text:
    """Where the card goes, one cell a sixtieth of its memory, in ledger order."""
    text = Text("[")
    total = per_gpu.total_memory_bytes
    filled = 0
    running = 0
    for term in DEVICE_TERMS:
        if not term.letter:
            continue
        running += getattr(per_gpu, term.field)
        upto = min(_BAR_CELLS, round(running / total * _BAR_CELLS))
        text.append(term.letter * (upto - filled), style=term.color)
        filled = max(filled, upto)
    text.append("." * (_BAR_CELLS - filled))
    legend = ", ".join(f"{term.letter} {term.label}" for term in DEVICE_TERMS if term.letter)
    text.append(f"] of {format_gib(total)}\n{legend}")
    return text


def _cache_lines(console: Console, estimate: Estimate) -> None:
    cache, engine = estimate.kv_cache, estimate.engine
    if cache is None or engine is None or not cache.num_gpu_blocks:
        return
    console.print()
    console.print(
        f"KV cache: {cache.num_gpu_blocks:,} blocks of {format_bytes(cache.bytes_per_block)}, "
        f"{format_bytes(cache.bytes_per_token)} a token and GPU; vLLM will report {cache.capacity_tokens:,} tokens, "
        f"{cache.max_concurrency:.2f}x at {engine.max_model_len:,} tokens a request"
    )
    if cache.usable_tokens and abs(cache.usable_tokens - cache.capacity_tokens) > 0.02 * cache.capacity_tokens:
        console.print(f"  held when full of requests of that length: {cache.usable_tokens:,} tokens")


def _rejection_lines(console: Console, estimate: Estimate) -> None:
    rejection = estimate.rejection
    if rejection is None:
        return
    console.print()
    console.print(Text(f"{rejection.bottleneck}: ", style="bold red") + Text(rejection.message))
    if rejection.need_bytes is not None and rejection.have_bytes is not None:
        console.print(f"  needs {format_gib(rejection.need_bytes)}, has {format_gib(rejection.have_bytes)}")
    for fix in rejection.fix:
        console.print(f"  try: {fix}")


def fit_table(rows: Sequence[tuple[int, Estimate, int]]) -> Table:
    """Ranked plans, a line each: rank, estimate, headroom in bytes. Tokens and requests are of all replicas."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    headings = (
        "#",
        "TP",
        "PP",
        "DP",
        "KV dtype",
        "max_model_len",
        "max_num_seqs",
        "batched",
        "util",
        "KV tokens",
        "at once",
        "headroom",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "KV dtype" else "right")
    for rank, estimate, headroom in rows:
        engine, cache = estimate.engine, estimate.kv_cache
        assert engine is not None
        assert cache is not None
        table.add_row(
            str(rank),
            str(engine.tensor_parallel_size),
            str(engine.pipeline_parallel_size),
            f"{engine.data_parallel_size}{' EP' if engine.enable_expert_parallel else ''}",
            engine.kv_cache_dtype,
            f"{engine.max_model_len:,}",
            f"{engine.max_num_seqs:,}",
            f"{engine.max_num_batched_tokens:,}",
            f"{engine.gpu_memory_utilization:g}",
            f"{cache.capacity_tokens * engine.data_parallel_size:,}",
            f"{cache.max_concurrency * engine.data_parallel_size:.1f}x",
            format_gib(headroom),
        )
    return table
