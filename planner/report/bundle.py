"""`vplan report`: everything about one plan as files: CSVs, pictures in both themes, Markdown, one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment
from planner.report import figures
from planner.report.document import Document, Grid, Section, html, markdown
from planner.report.media_rows import media_rows
from planner.report.rows import BREAKDOWNS, Row, breakdown_rows, ledger_rows, load_rows, variant_rows
from planner.report.schema import table_csv
from planner.report.theme import DARK, LIGHT, Theme, png, tokens_label
from planner.search.variants import Variants
from planner.units import format_bytes, format_gib

CONCURRENCIES = (1, 4, 16, 64, 256)
_DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")
_CONTENT = {
    "layer": "decoder layers, and what is outside them",
    "module": "modules over all layers",
    "dtype": "stored dtype",
    "rank": "ranks of each pipeline stage",
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a plan's report shows. `variants`: a flag, and an assessment for each of its values."""

    assessment: Assessment
    command: str = ""
    breakdowns: tuple[str, ...] = BREAKDOWNS
    concurrencies: tuple[int, ...] = CONCURRENCIES
    lengths: tuple[int, ...] = ()
    variants: tuple[tuple[str, tuple[tuple[str, Assessment], ...]], ...] = ()
    notes: tuple[str, ...] = ()


def plan_report(content: Content) -> dict[str, bytes]:
    """The files of a report by name; the same bytes for the same plan."""
    assessment = content.assessment
    estimate = assessment.estimate
    files: dict[str, bytes] = {}
    pictures: dict[str, bytes] = {}

    def table(name: str, rows: Sequence[Row], file: str = "") -> None:
        files[f"{file or name}.csv"] = table_csv(name, rows).encode()

    def picture(name: str, draw: Callable[[Theme], Axes]) -> None:
        pictures[f"{name}.png"], pictures[f"{name}_dark.png"] = png(draw(LIGHT), LIGHT), png(draw(DARK), DARK)

    sections = [_command_section(content)]
    ledger = ledger_rows(assessment)
    table("ledger", ledger)
    picture("ledger", lambda theme: figures.ledger(assessment, theme))
    sections.append(_ledger_section(ledger))
    load = load_rows(assessment, content.lengths or _lengths(assessment), content.concurrencies)
    table("load", load)
    if load and estimate.per_gpu is not None:
        requested = estimate.per_gpu.requested_memory_bytes
        picture("load", lambda theme: figures.load(load, requested, theme))
        sections.append(_load_section(load))
    breakdowns = {by: breakdown_rows(assessment, by) for by in content.breakdowns}
    table("breakdown", [row for rows in breakdowns.values() for row in rows])
    for by, rows in breakdowns.items():
        if rows:
            picture(f"breakdown_{by}", lambda theme, rows=rows: figures.breakdown(rows, theme))  # type: ignore[misc]
            sections.append(_breakdown_section(by, rows))
    changed: list[Row] = []
    for flag, assessments in content.variants:
        rows = variant_rows(flag, assessments)
        changed += rows
        name = f"variants_{_name(flag)}"
        picture(name, lambda theme, rows=rows: figures.variants(rows, theme))  # type: ignore[misc]
        sections.append(_variants_section(flag, name, rows))
    if content.variants:
        table("variants", changed)
    media = media_rows(assessment)
    if media:
        table("media", media)
        picture("media", lambda theme: figures.media(media, theme))
        sections.append(_media_section(media))
    document = Document(
        f"{estimate.model} on {estimate.gpus}, vLLM {estimate.vllm_version}", _verdict(content), tuple(sections)
    )
    files["report.md"] = markdown(document).encode()
    files["report.html"] = html(document, pictures).encode()
    return {**files, **pictures}


def _verdict(content: Content) -> str:
    estimate = content.assessment.estimate
    if estimate.rejection is None:
        return "starts"
    return f"rejected: {estimate.rejection.bottleneck}: {' '.join(estimate.rejection.message.split())}"


def _command_section(content: Content) -> Section:
    estimate = content.assessment.estimate
    fixes = estimate.rejection.fix if estimate.rejection else ()
    items = (*content.notes, *(f"try: {fix}" for fix in fixes), *(f"warning: {text}" for text in estimate.warnings))
    return Section("Command", code=content.command, items=items)


def _ledger_section(rows: Sequence[Row]) -> Section:
    grid = Grid(
        ("ranks", "ledger", "term", "bytes#", "GiB#", "from#", "to#"),
        tuple(
            (
                str(row["ranks"]),
                str(row["ledger"]),
                str(row["label"]),
                f"{row['bytes']:,}",
                *(_gib(row[name]) for name in ("bytes", "low_bytes", "high_bytes")),
            )
            for row in rows
        ),
    )
    text = (
        "The engine plans within its budget; the device also holds what the engine does not count. "
        "Ranks of one stage are alike. From and to, in GiB, where a term is uncertain."
    )
    return Section("Where the GPU goes", text, grid, (("ledger", "Both ledgers of every rank as stacked bars"),))


def _load_section(rows: Sequence[Row]) -> Section:
    concurrencies = list(dict.fromkeys(row["concurrency"] for row in rows))
    lengths = list(dict.fromkeys(row["max_model_len"] for row in rows))
    cells = {(row["max_model_len"], row["concurrency"]): row for row in rows}
    grid = Grid(
        ("max_model_len", *(f"{concurrency} at once#" for concurrency in concurrencies)),
        tuple((_tokens(length), *(_load_cell(cells[length, one]) for one in concurrencies)) for length in lengths),
    )
    text = "GiB on one GPU that the engine would count; 'no' where the engine's budget or the card does not hold it."
    return Section("Memory against length and concurrency", text, grid, (("load", "Memory against max_model_len"),))


def _tokens(length: object) -> str:
    return tokens_label(length) if isinstance(length, int) else ""


def _load_cell(row: Row) -> str:
    return f"{_gib(row['engine_bytes'])}{'' if row['fits_budget'] and row['fits_device'] else ' no'}"


def _breakdown_section(by: str, rows: Sequence[Row]) -> Section:
    most = 200
    shown = tuple(
        (
            str(row["part"]),
            str(row["component"]),
            f"{row['parameter_bytes']:,}",
            f"{row['other_bytes']:,}",
            _gib(row["bytes"]),
            f"{100 * float(row['share'] or 0):.2f} %",
        )
        for row in rows[:most]
    )
    rest = f" The first {most} of {len(rows)}; breakdown.csv has all." if len(rows) > most else ""
    return Section(
        f"Weights by {by}",
        f"Tensors after loading, summed by {_CONTENT[by]}.{rest}",
        Grid((by, "component", "parameters, bytes#", "other, bytes#", "GiB#", "share#"), shown),
        ((f"breakdown_{by}", f"Weights by {by}"),),
    )


def _variants_section(flag: str, name: str, rows: Sequence[Row]) -> Section:
    grid = Grid(
        (
            flag,
            "verdict",
            "weights, GiB#",
            "activation, GiB#",
            "KV cache, GiB#",
            "tokens#",
            "requests#",
            "used, GiB#",
            "why not",
        ),
        tuple(
            (
                str(row["value"]),
                str(row["verdict"]),
                _gib(row["weights_memory_bytes"]),
                _gib(row["peak_activation_bytes"]),
                _gib(row["available_kv_cache_bytes"]),
                _count(row["capacity_tokens"]),
                _count(row["max_concurrency"]),
                _gib(row["used_after_startup_bytes"]),
                str(row["message"]),
            )
            for row in rows
        ),
    )
    return Section(
        f"Other values of {flag}",
        "All other flags as in the command.",
        grid,
        ((name, f"The plan under values of {flag}"),),
    )


def _media_section(rows: Sequence[Row]) -> Section:
    grid = Grid(
        ("image", "in flight#", "tokens each#", "encoded at once#", "encoder's peak#", "left on the card#", "fits"),
        tuple(
            (
                f"{row['width_pixels']} x {row['height_pixels']}",
                str(row["items"]),
                f"{row['tokens_per_item']:,}",
                str(row["items_per_step"]),
                _size(row["vision_encoder_runtime_peak_bytes"]),
                _size(row["device_free_bytes"]),
                "yes" if row["fits_device"] else "no",
            )
            for row in rows
        ),
    )
    text = f"One step encodes at most {rows[0]['encoder_budget_tokens']:,} tokens of media; larger batches wait."
    return Section(
        "Media budget against encoder memory", text, grid, (("media", "Encoder memory against images in flight"),)
    )


def _lengths(assessment: Assessment) -> tuple[int, ...]:
    """Doublings from 1,024 to the model's own length."""
    if assessment.deployment is None:
        return ()
    longest = assessment.deployment.model.derived_max_model_len
    doubled = [1 << step for step in range(10, 24) if 1 << step < longest]
    return (*doubled[-8:], longest)


def _gib(value: object) -> str:
    return format_gib(value).removesuffix(" GiB") if isinstance(value, int) else ""


def _size(value: object) -> str:
    return format_bytes(value) if isinstance(value, int) else ""


def _count(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else ""


def _name(flag: str) -> str:
    return flag.strip("-").replace("-", "_").replace(" ", "_")


def with_dtype(args: EngineArgs, value: str) -> EngineArgs:
    """The flags with one value of `--dtypes`: `kv:VALUE` for the cache, a --dtype, else a --quantization method."""
    if value.startswith("kv:"):
        return args.model_copy(update={"kv_cache_dtype": value.removeprefix("kv:")})
    if value in _DTYPES:
        return args.model_copy(update={"dtype": value})
    return args.model_copy(update={"quantization": value})


def side_by_side(
    variants: Variants, args: EngineArgs, dtypes: Sequence[str], batch_sizes: Sequence[int]
) -> tuple[tuple[str, tuple[tuple[str, Assessment], ...]], ...]:
    """The plan under other dtypes and quantizations, and under other values of --max-num-seqs."""
    found = []
    if dtypes:
        found.append(("dtype", tuple((value, variants.assess(with_dtype(args, value))) for value in dtypes)))
    if batch_sizes:
        sized = ((str(size), args.model_copy(update={"max_num_seqs": size})) for size in batch_sizes)
        found.append(("max_num_seqs", tuple((value, variants.assess(changed)) for value, changed in sized)))
    return tuple(found)
