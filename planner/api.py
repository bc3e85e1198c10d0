"""The public Python interface: one function for each planning command, from names and flags to values.

Every function takes a `Request` and raises `planner.errors` exceptions for what is no answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from planner.engine.architecture import refuse_architecture
from planner.engine.args import EngineArgs
from planner.errors import InputError, UnsupportedError
from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.assess import Assessment, assess, refused_estimate
from planner.memory.crosscheck import checkpoint_warning
from planner.memory.intervals import Confidence
from planner.model.build import architecture_of, build_model
from planner.model.config_view import ConfigView
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.plan import Plan, SearchResult
from planner.search.space import SearchOptions
from planner.serve.command import serve_argv, shell_command
from planner.values import Rejected, Value

if TYPE_CHECKING:
    from planner.report.matrix import Matrix
    from planner.report.selection import Limits, Selection
    from planner.report.speed import SpeedAnswer
    from planner.report.sweep import Axis, Pairs
    from planner.search.analysis import Analysis
    from planner.search.select_fits import Fit

DEFAULT_VERSION = "0.26.0"
"""The newest release verified on hardware."""


class Request(Value):
    """What the user asks about. `given` names the EngineArgs fields that were set on purpose; `extra_argv` holds
    options of a pasted command that leave memory alone and stay in the command. `confidence`: whether the verdict must
    hold at the unfavourable ends of the intervals, or by expected values. `calibration`: a file of `vplan calibrate`,
    None for the user's own, "none" for no file."""

    model: str
    gpus: str
    vllm_version: str | None = None
    source: str = "hf"
    offline: bool = False
    hardware_catalogs: tuple[str, ...] = ()
    model_catalogs: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    args: EngineArgs = EngineArgs()
    extra_argv: tuple[str, ...] = ()
    confidence: Confidence = "safe"
    calibration: str | None = None

    @property
    def version(self) -> str:
        return self.vllm_version or DEFAULT_VERSION


def load_files(request: Request) -> ModelFiles:
    """The small files of the model that the request names, from a folder, a catalog or a hub."""
    from planner.sources.load import load_model

    source: Literal["hf", "modelscope"]
    if request.source == "hf":
        source = "hf"
    elif request.source == "modelscope":
        source = "modelscope"
    else:
        raise InputError(f"--source: choose hf or modelscope, not {request.source!r}")
    return load_model(request.model, source=source, offline=request.offline, model_catalog_paths=request.model_catalogs)


def load_spec(request: Request) -> ModelSpec:
    """The model that the request names.

    Raises Rejected where this vLLM release refuses the architecture or its quantization section.
    """
    files = load_files(request)
    overrides = _json_object(request.args.hf_overrides, "--hf-overrides")
    refuse_architecture(architecture_of(ConfigView({**files.config, **overrides})), request.version)
    model = build_model(files, overrides, trust_remote_code=request.args.trust_remote_code)
    if request.args.speculative_config is None:
        return model
    from planner.sources.draft import attach_draft

    return attach_draft(
        model,
        files,
        request.args.speculative_config,
        lambda name: load_files(request.model_copy(update={"model": name})),
    )


def load_gpus(request: Request) -> GpuPool:
    """The cards that the request names, with what a calibration knows of them."""
    from planner.sources.calibration import calibrated
    from planner.sources.gpu_pool import parse_gpus
    from planner.sources.hardware_catalog import load_hardware_catalog

    gpus = parse_gpus(request.gpus, load_hardware_catalog(request.hardware_catalogs))
    return calibrated(gpus, request.calibration)


def estimate(request: Request) -> Assessment:
    """What vLLM will do with exactly these flags."""
    gpus = load_gpus(request)
    try:
        model = load_spec(request)
    except Rejected as refused:
        return Assessment(refused_estimate(request.model, gpus, request.version, refused.rejection))
    found = assess(model, gpus, request.args, request.version, confidence=request.confidence)
    warning = None if found.config is None else checkpoint_warning(model, found.config)
    if warning is None:
        return found
    warnings = (*found.estimate.warnings, warning)
    return replace(found, estimate=found.estimate.model_copy(update={"warnings": warnings}))


def fit(request: Request, options: SearchOptions) -> SearchResult:
    """The best flags for the model on these cards."""
    from planner.search.search import refused_search, search

    gpus = load_gpus(request)
    try:
        model = load_spec(request)
    except Rejected as refused:
        return refused_search(refused.rejection)
    return search(model, gpus, options, request.version)


def checkpoints(request: Request) -> Iterator[tuple[str, str, ModelSpec]]:
    """(quantization scheme, id, model) of the other checkpoints that the model catalog knows of the request's model."""
    from planner.sources.model_catalog import load_model_catalog

    for scheme, name in load_model_catalog(request.model_catalogs).checkpoints(request.model).items():
        try:
            yield scheme or "unquantized", name, load_spec(request.model_copy(update={"model": name}))
        except (Rejected, UnsupportedError, InputError):
            continue


def analyse(
    request: Request,
    options: SearchOptions,
    result: SearchResult,
    *,
    pareto: bool = False,
    sensitivity: bool = False,
    variants: bool = False,
) -> Analysis:
    """What a search tells beside its plans; where it found none, the nearest misses."""
    from planner.search import analysis

    gpus = load_gpus(request)
    try:
        model = load_spec(request)
    except Rejected:
        return analysis.Analysis()
    return analysis.analyse(
        model, gpus, options, request.version, result, lambda: checkpoints(request), pareto=pareto,
        sensitive=sensitivity, variants=variants,
    )  # fmt: skip


def launches(request: Request, result: SearchResult) -> list[tuple[list[str], dict[str, str], str]]:
    """How each plan of a search is started: argv, environment, and both as one shell line."""
    found = []
    for plan in result.plans:
        assert plan.assessment.config is not None
        argv, env = serve_argv(request.model, plan.args, plan.assessment.config), dict(plan.args.env)
        found.append((argv, env, shell_command(argv, env)))
    return found


def plan_command(request: Request, plan: Plan, model: str = "") -> str:
    """The shell line of one plan; `model`: its checkpoint, where it is not the request's."""
    assert plan.assessment.config is not None
    argv = serve_argv(model or request.model, plan.args, plan.assessment.config)
    return shell_command(argv, dict(plan.args.env))


def report(
    request: Request,
    *,
    breakdowns: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    concurrencies: Sequence[int] = (),
    lengths: Sequence[int] = (),
    notes: Sequence[str] = (),
) -> tuple[bool, dict[str, bytes]]:
    """Whether the plan starts, and the files of its report by name (docs/reports.md). Needs the `report` extra."""
    from planner.report.bundle import CONCURRENCIES, Content, plan_report, side_by_side
    from planner.report.rows import BREAKDOWNS
    from planner.search.variants import Variants

    found = estimate(request)
    variants = Variants(load_spec(request), load_gpus(request), request.version, confidence=request.confidence)
    changed = side_by_side(variants, request.args, dtypes, batch_sizes)
    content = Content(
        assessment=found,
        command=command_of(request, found),
        breakdowns=tuple(breakdowns) or BREAKDOWNS,
        concurrencies=tuple(concurrencies) or CONCURRENCIES,
        lengths=tuple(lengths),
        variants=changed,
        notes=tuple(notes),
    )
    return found.estimate.starts, plan_report(content)


def select(
    request: Request,
    options: SearchOptions,
    *,
    models: Sequence[str] = (),
    only: Sequence[str] = (),
    max_count: int = 16,
    nodes: Sequence[int] = (1,),
    prices: Mapping[str, float] | None = None,
    bought: Mapping[str, float] | None = None,
    months: int = 36,
    limits: Limits | None = None,
    order: str = "cost",
) -> Selection:
    """Every card of the catalog (or those of `only`) for the workload of `options`; `request.gpus` is not looked at.

    `models` beside the request's are held to the same workload; the rows then end with machines that serve all of them.
    `prices`: dollars for a card and hour, `bought`: to buy one, by GPU name. Raises what load_spec raises.
    """
    from planner.report.prices import PriceBook
    from planner.report.selection import Limits, Selection, selection_rows, together_rows
    from planner.search.media import with_media_limits
    from planner.search.select import select as choose
    from planner.sources.hardware_catalog import load_hardware_catalog

    catalog = load_hardware_catalog(request.hardware_catalogs)
    cards = [catalog.find(name) for name in only] or list(catalog.all())
    book = PriceBook(
        {catalog.find(name).name: usd for name, usd in (prices or {}).items()},
        {catalog.find(name).name: usd for name, usd in (bought or {}).items()},
        months,
    )
    limits, names = limits or Limits(), tuple(dict.fromkeys((request.model, *models)))
    concurrency = options.workload.concurrency or 1
    found, rows = [], []
    notes: list[str] = []
    for name in names:
        model = load_spec(request.model_copy(update={"model": name}))
        choices = choose(model, cards, options, request.version, max_count=max_count, nodes=tuple(nodes))
        found.append(choices)
        rows += selection_rows(name, request.version, choices, concurrency, book, limits, order)
        notes += with_media_limits(model, options)[1]
    if len(names) > 1:
        rows += together_rows(names, request.version, found, concurrency, book, limits, order, max_count)
    load = f"{concurrency} requests of {options.args.max_model_len:,} tokens"
    title = f"{', '.join(names)}; {load}, vLLM {request.version}"
    return Selection(title, rows, concurrency, tuple(dict.fromkeys(notes)))


def matrix(
    request: Request,
    options: SearchOptions,
    *,
    models: Sequence[str] = (),
    only: Sequence[str] = (),
    max_count: int = 16,
    jobs: int = 1,
) -> Matrix:
    """The fewest of each card that hold the workload of `options`, for the request's model and `models`: the verdicts
    of `select`, many times as fast and without its figures; for a model that is refused or not supported, why.

    `jobs`: processes to share the models, where the machine allows any.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from functools import partial

    from planner.report.matrix import Matrix
    from planner.sources.hardware_catalog import load_hardware_catalog

    names = tuple(dict.fromkeys((request.model, *models)))
    catalog = load_hardware_catalog(request.hardware_catalogs)
    cards = tuple(catalog.find(card) for card in only) or catalog.all()
    answer = partial(_fits, request, options, cards, max_count)
    load = f"--concurrency {options.workload.concurrency or 1} --max-model-len {options.args.max_model_len}"
    titled = partial(Matrix, request.version, load, tuple(card.name for card in cards))
    if jobs > 1 and len(names) > 1:
        try:
            with ProcessPoolExecutor(min(jobs, len(names))) as pool:
                return titled(dict(zip(names, pool.map(answer, names, chunksize=4), strict=True)))
        except (OSError, BrokenProcessPool):
            pass
    return titled({name: answer(name) for name in names})


def _fits(
    request: Request, options: SearchOptions, cards: tuple[GpuSpec, ...], max_count: int, name: str
) -> tuple[Fit, ...] | str:
    from planner.search.select_fits import fits

    try:
        model = load_spec(request.model_copy(update={"model": name}))
        return fits(model, cards, options, request.version, max_count=max_count)
    except (UnsupportedError, Rejected) as refused:
        return str(refused)


def sweep(
    request: Request, x: Axis, y: Axis, progress: Callable[[int, int], None] | None = None
) -> tuple[bool, dict[str, bytes]]:
    """Whether any pair of the two flags' values starts, and the files of the sweep. Needs the `report` extra."""
    from planner.report.fit import Launch
    from planner.report.sweep import frontier_json, sweep_rows
    from planner.report.sweep_report import sweep_report

    def launch(args: EngineArgs, assessment: Assessment) -> Launch:
        assert assessment.config is not None
        argv, env = serve_argv(request.model, args, assessment.config, request.extra_argv), dict(args.env)
        return Launch(argv, env, shell_command(argv, env))

    found = _sweep_pairs(request, x, y, progress)
    rows = sweep_rows(found, x, y, lambda args, assessment: launch(args, assessment).command)
    return any(row["verdict"] == "starts" for row in rows), sweep_report(rows, frontier_json(found, launch))


def sweep_table(
    request: Request, x: Axis, y: Axis, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, str | int | float | bool | None]]:
    """The rows of the `sweep` table: every pair of the two flags' values with its estimate."""
    from planner.report.sweep import sweep_rows

    def command(args: EngineArgs, assessment: Assessment) -> str:
        return command_of(request.model_copy(update={"args": args}), assessment)

    return sweep_rows(_sweep_pairs(request, x, y, progress), x, y, command)


def _sweep_pairs(request: Request, x: Axis, y: Axis, progress: Callable[[int, int], None] | None) -> Pairs:
    from planner.report.sweep import sweep_pairs
    from planner.search.variants import Variants

    variants = Variants(load_spec(request), load_gpus(request), request.version, confidence=request.confidence)
    return sweep_pairs(variants, request.args, x, y, progress or (lambda done, total: None))


def command_of(request: Request, assessment: Assessment) -> str:
    """The shell line that starts what was assessed; empty where vLLM refuses before the flags are resolved."""
    if assessment.config is None:
        return ""
    argv = serve_argv(request.model, request.args, assessment.config, request.extra_argv)
    return shell_command(argv, dict(request.args.env))


def launch_form(request: Request, assessment: Assessment, form: str) -> str:
    """What was assessed, written as one of `planner.serve.launch.FORMS`.

    Raises InputError where vLLM refuses before the flags are resolved, UnsupportedError where the form cannot carry it.
    """
    from planner.serve.launch import launch_plan, render

    if assessment.config is None or assessment.deployment is None:
        raise InputError("a plan that vLLM refuses has no launch form")
    argv = serve_argv(request.model, request.args, assessment.config, request.extra_argv)
    plan = launch_plan(
        argv, dict(request.args.env), assessment.config, assessment.deployment.gpus, source=request.source,
        download_bytes=assessment.deployment.model.checkpoint_bytes,
    )  # fmt: skip
    return render(form, plan)


def speed(
    request: Request,
    assessment: Assessment,
    concurrencies: Sequence[int],
    prompt_tokens: int,
    output_tokens: int,
    usd_per_gpu_hour: float | None = None,
) -> SpeedAnswer | None:
    """How fast what was assessed will be at each number of requests at once, and what its cards cost; None where the
    catalog knows no bandwidth or FLOPS of the card."""
    from planner.memory.kv_capacity import whole_requests
    from planner.report.prices import PriceBook
    from planner.report.speed import SpeedAnswer
    from planner.search.speed import speed_of

    deployment, cache = assessment.deployment, assessment.estimate.kv_cache
    if deployment is None or cache is None:
        raise InputError("a plan that vLLM refuses has no speed")
    found = [speed_of(deployment, count, prompt_tokens, output_tokens) for count in concurrencies]
    speeds = [one for one in found if one is not None]
    if len(speeds) < len(found):
        return None
    gpu, config = deployment.gpus.gpu, deployment.config
    given = {} if usd_per_gpu_hour is None else {gpu.name: usd_per_gpu_hour}
    nodes = -(-config.world_size // deployment.gpus.count)
    held = whole_requests(
        deployment.pool, cache.num_gpu_blocks, prompt_tokens + output_tokens, config.max_num_batched_tokens
    )
    return SpeedAnswer(
        assessment.estimate, speeds, min(held, config.max_num_seqs) * config.data_parallel_size,
        PriceBook(given, {}).cost(gpu, -(-config.world_size // nodes), nodes),
    )  # fmt: skip


def _json_object(text: str | None, where: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object")
    return value


__all__ = [
    "DEFAULT_VERSION",
    "Request",
    "SearchOptions",
    "analyse",
    "checkpoints",
    "command_of",
    "estimate",
    "fit",
    "launch_form",
    "launches",
    "load_files",
    "load_gpus",
    "load_spec",
    "report",
    "select",
    "speed",
    "sweep",
    "sweep_table",
]
