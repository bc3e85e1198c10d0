"""The tables that reports write: every column with its type, unit and meaning, and a version for each table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.report.tables import Cell, csv_text

Kind = Literal["text", "int", "float", "bool"]
_PYTHON: dict[Kind, tuple[type, ...]] = {"text": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. Sizes are whole bytes of one GPU; an empty cell means that the figure does not exist."""

    name: str
    kind: Kind
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One CSV: `version` goes up when a column is renamed, removed or changes its meaning."""

    name: str
    purpose: str
    columns: tuple[Column, ...]
    version: int = 1

    @property
    def schema(self) -> str:
        return f"vplan.{self.name}/{self.version}"


def _c(name: str, kind: Kind, meaning: str) -> Column:
    return Column(name, kind, meaning)


_WHO = (
    _c("model", "text", "model as the user names it"),
    _c("gpus", "text", "cards as --gpus spells them"),
    _c("vllm_version", "text", "vLLM release of the plan"),
)
_VERDICT = (
    _c("verdict", "text", "starts or rejected"),
    _c("bottleneck", "text", "what refuses; empty where it starts"),
    _c("message", "text", "vLLM's sentence; empty where it starts"),
)
LEDGER_COLUMNS = (
    _c("total_memory_bytes", "int", "memory that CUDA reports for the card"),
    _c("requested_memory_bytes", "int", "the engine's budget"),
    _c("parameter_bytes", "int", "parameters as created"),
    _c("weights_memory_bytes", "int", "Model loading took"),
    _c("peak_activation_bytes", "int", "highest moment of the profile run"),
    _c("non_torch_bytes", "int", "outside PyTorch"),
    _c("cuda_graph_estimate_bytes", "int", "set aside for CUDA graphs"),
    _c("also_counted_bytes", "int", "what else this release's engine subtracts"),
    _c("available_kv_cache_bytes", "int", "left for the cache by the engine"),
    _c("cuda_context_bytes", "int", "CUDA context and communicators"),
    _c("runner_state_bytes", "int", "runner and sampler buffers"),
    _c("kv_cache_allocated_bytes", "int", "cache as allocated"),
    _c("cuda_graph_actual_bytes", "int", "what the graphs take"),
    _c("allocator_retained_bytes", "int", "kept by PyTorch's allocator"),
    _c("used_after_startup_bytes", "int", "sum of the device's ledger"),
    _c("vision_encoder_runtime_peak_bytes", "int", "encoder's peak in the fullest step, on top"),
)
_CACHE = (
    _c("bytes_per_token", "int", "cache of one token on one GPU"),
    _c("num_gpu_blocks", "int", "blocks of the pool"),
    _c("capacity_tokens", "int", "GPU KV cache size as vLLM logs it"),
    _c("max_concurrency", "float", "requests of max_model_len as vLLM logs it"),
)
_FLAGS = (
    _c("dtype", "text", "dtype of weights and activations"),
    _c("quantization", "text", "method that vLLM ends with; empty: none"),
    _c("kv_cache_dtype", "text", "--kv-cache-dtype as resolved"),
    _c("tensor_parallel_size", "int", "GPUs that share each layer"),
    _c("pipeline_parallel_size", "int", "stages"),
    _c("max_model_len", "int", "tokens of the longest request"),
    _c("max_num_seqs", "int", "sequences in one step"),
    _c("max_num_batched_tokens", "int", "tokens in one step"),
    _c("gpu_memory_utilization", "float", "share of total memory in the budget"),
)

_TABLES = (
    Table(
        "ledger",
        "both ledgers of every rank, a row a term",
        (
            *_WHO,
            _c("stage", "int", "pipeline stage, from 0"),
            _c("ranks", "text", "tensor-parallel ranks of the stage, all alike"),
            _c("ledger", "text", "engine or device"),
            _c("term", "text", "name of the term in the JSON contract"),
            _c("label", "text", "the term in words"),
            _c("bytes", "int", "size on one GPU"),
            _c("low_bytes", "int", "least it may be; empty: exact, or not of the fullest stage"),
            _c("high_bytes", "int", "most it may be"),
        ),
    ),
    Table(
        "breakdown",
        "weights by layer, module, dtype or rank, a row a part",
        (
            *_WHO,
            _c("by", "text", "layer, module, dtype or rank"),
            _c("part", "text", "the layer, module, dtype or rank"),
            _c("component", "text", "language_model, vision_tower, ...; several joined by +"),
            _c("parameter_bytes", "int", "parameters after loading"),
            _c("other_bytes", "int", "buffers, copies and workspaces"),
            _c("bytes", "int", "all of the part"),
            _c("share", "float", "of all rows of this kind, 0 to 1"),
        ),
    ),
    Table(
        "load",
        "memory against max_model_len and concurrency, a row a pair",
        (
            *_WHO,
            _c("max_model_len", "int", "tokens of each request"),
            _c("concurrency", "int", "requests held at once"),
            _c("kv_cache_bytes", "int", "cache that they need"),
            _c("engine_bytes", "int", "with what the engine counts beside it"),
            _c("device_bytes", "int", "with what the device holds beside it, encoder's peak included"),
            _c("fits_budget", "bool", "engine_bytes within requested_memory_bytes"),
            _c("fits_device", "bool", "device_bytes within total_memory_bytes"),
        ),
    ),
    Table(
        "variants",
        "the same plan with one flag changed, a row a value",
        (
            *_WHO,
            _c("flag", "text", "the flag that changes"),
            _c("value", "text", "its value"),
            *_VERDICT,
            *_FLAGS,
            *LEDGER_COLUMNS,
            *_CACHE,
        ),
    ),
    Table(
        "media",
        "encoder memory against media, a row a size and count",
        (
            *_WHO,
            _c("modality", "text", "image or video"),
            _c("width_pixels", "int", "before the processor resizes"),
            _c("height_pixels", "int", "before the processor resizes"),
            _c("seconds", "float", "of video; empty for an image"),
            _c("items", "int", "of concurrent requests together"),
            _c("tokens_per_item", "int", "in the prompt"),
            _c("embeddings_per_item", "int", "out of the encoder"),
            _c("encoder_budget_tokens", "int", "embeddings one step may make"),
            _c("items_per_step", "int", "encoded at once within the budget"),
            _c("vision_encoder_runtime_peak_bytes", "int", "the encoder's peak on one GPU"),
            _c("device_free_bytes", "int", "left on the card after startup"),
            _c("fits_device", "bool", "the peak is within what is left"),
        ),
    ),
    Table(
        "sweep",
        "two flags over ranges, a row a pair",
        (
            *_WHO,
            _c("x_flag", "text", "first flag"),
            _c("x_value", "text", "its value"),
            _c("y_flag", "text", "second flag"),
            _c("y_value", "text", "its value"),
            _c("frontier", "bool", "starts, and a neighbouring pair does not"),
            _c("fits_with_media", "bool", "starts, and the device also holds a full media batch"),
            *_VERDICT,
            *_FLAGS,
            *LEDGER_COLUMNS,
            *_CACHE,
            _c("command", "text", "vllm serve ... of a pair that starts"),
        ),
    ),
    Table(
        "select",
        "the hardware catalog for one workload, a row a card and count",
        (
            _c("rank", "int", "1 is first of its model; rows that do not fit come last, in catalog order"),
            _c("model", "text", "model as the user names it"),
            _c("vllm_version", "text", "vLLM release of the plan"),
            _c("gpu", "text", "card"),
            _c("vendor", "text", "nvidia or amd"),
            _c("gpus_per_node", "int", "cards in a machine"),
            _c("nodes", "int", "machines"),
            _c("fits", "bool", "the workload is held with the safety margin"),
            _c("bottleneck", "text", "why not; empty where it fits"),
            _c("reason", "text", "why not, in words"),
            _c("tensor_parallel_size", "int", "best layout found"),
            _c("pipeline_parallel_size", "int", "stages"),
            _c("replicas", "int", "copies of the engine on the cards, a load balancer before them"),
            _c("gpu_memory_utilization", "float", "largest that keeps the margin"),
            _c("dtype", "text", "dtype on this card"),
            _c("total_memory_bytes", "int", "memory of one card"),
            _c("memory_evidence", "text", "measured, derived or user"),
            _c("weights_memory_bytes", "int", "weights on one card"),
            _c("headroom_bytes", "int", "free on the fullest card at the plan's height"),
            _c("capacity_tokens", "int", "tokens that the caches of all replicas hold"),
            _c("capacity_requests", "int", "requests of max_model_len held at once by all replicas"),
            _c("estimated_decode_tokens_per_s", "float", "ESTIMATE: roofline of all replicas at the asked concurrency"),
            _c("estimated_prefill_tokens_per_s", "float", "ESTIMATE: roofline of all replicas; empty: FLOPS not known"),
            _c("usd_per_gpu_hour", "float", "price; empty: none known"),
            _c("billed_gpus", "int", "cards paid for: whole machines where the offer is one"),
            _c("usd_per_hour", "float", "all billed cards"),
            _c("usd_per_month", "float", "730 hours"),
            _c("usd_per_million_tokens", "float", "ESTIMATE: at the estimated decode rate"),
            _c("usd_to_buy", "float", "purchase price of all cards; empty: not bought"),
            _c("price_basis", "text", "rent, given (an hourly price of the user) or buy; empty: no price known"),
            _c("price_offer", "text", "what is priced"),
            _c("price_region", "text", "of the offer; empty: of no region"),
            _c("price_source", "text", "where the price was read"),
            _c("price_date", "text", "when; undated: its source has no date; empty: the user's own, or none"),
            _c("watts", "int", "board power of all cards, machines not counted"),
            _c("estimated_tokens_per_joule", "float", "ESTIMATE: decode tokens per second and watt of board power"),
        ),
    ),
    Table(
        "matrix",
        "which cards hold which models, a row a model and card",
        (
            _c("model", "text", "model as the user names it"),
            _c("vllm_version", "text", "vLLM release of the verdict"),
            _c("gpu", "text", "card; empty where the model is refused"),
            _c("fits", "bool", "some number of the cards in one machine holds the workload with the safety margin"),
            _c("fewest_gpus", "int", "the least such number; empty: none that was tried"),
            _c("tensor_parallel_size", "int", "of each engine"),
            _c("replicas", "int", "engines side by side"),
            _c("evidence", "text", "bounds, or replay where the whole model's weights had to be laid out"),
            _c("refusal", "text", "why the model is not served at all"),
        ),
    ),
    Table(
        "compare",
        "plans side by side, a row a plan and term",
        (
            _c("plan", "text", "label of the plan"),
            *_WHO,
            _c("term", "text", "name of the term in the JSON contract"),
            _c("value", "int", "bytes, tokens or blocks, as the term's name says"),
            _c("difference", "int", "against the first plan; empty where either lacks the term"),
        ),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}


def table_csv(name: str, rows: Sequence[Mapping[str, Cell]]) -> str:
    """The rows as CSV with the table's `schema` in the first column; the header stands alone where there are no rows.

    ValueError where a row does not have the table's columns and types.
    """
    table = TABLES[name]
    typed = [_checked(table, row) for row in rows]
    if typed:
        return csv_text(typed)
    return ",".join(("schema", *(column.name for column in table.columns))) + "\n"


def _checked(table: Table, row: Mapping[str, Cell]) -> dict[str, Cell]:
    if (found := list(row)) != (wanted := [column.name for column in table.columns]):
        raise ValueError(f"{table.schema}: columns {sorted(set(found) ^ set(wanted)) or found}")
    for column in table.columns:
        value = row[column.name]
        is_flag = isinstance(value, bool) and column.kind != "bool"
        if value is not None and (is_flag or not isinstance(value, _PYTHON[column.kind])):
            raise ValueError(f"{table.schema}: {column.name} is {value!r}, not {column.kind}")
    return {"schema": table.schema, **row}


def schema_markdown() -> str:
    """Every table with its columns, as docs/reports.md shows them."""
    lines: list[str] = []
    for table in TABLES.values():
        lines += ["", f"### `{table.schema}`", "", f"{table.purpose[:1].upper()}{table.purpose[1:]}.", ""]
        lines += ["| column | type | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in table.columns]
    return "\n".join(lines).strip() + "\n"
