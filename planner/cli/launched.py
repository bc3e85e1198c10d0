"""What an earlier answer or a pasted command asks for, as the request that makes it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner import api
from planner.api import Request
from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.memory.assess import Assessment
from planner.plan_file import PlanFile, read_plan_file, whole_plan
from planner.serve.command import model_argument
from planner.serve.parse import ParsedCommand, RefusedCommand, parse_command

_FROM_ENGINE = (
    "dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel",
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "block_size", "gpu_memory_utilization",
    "enforce_eager",
)  # fmt: skip
_PARTIAL = (
    "an estimate's JSON carries the resolved flags only: limits of media, LoRA, speculation and graph sizes are vLLM's "
    "defaults here; a fit's JSON carries the whole command"
)


def request_from_command(command: str, beside: Request) -> Request:
    """The request that a pasted command makes; what is given beside it wins. Raises InputError where vLLM's parser
    refuses it."""
    try:
        parsed = parse_command(command, beside.vllm_version)
    except RefusedCommand as refused:
        raise InputError(f"vLLM refuses the command: {refused}") from None
    return request_of_parsed(parsed, beside)


def request_of_parsed(parsed: ParsedCommand, beside: Request) -> Request:
    """The request of a parsed command; what is given beside it wins."""
    given = {name: getattr(parsed.args, name) for name in parsed.given}
    given |= {name: getattr(beside.args, name) for name in beside.given}
    env = dict(parsed.args.env) | dict(beside.args.env)
    return beside.model_copy(
        update={
            "model": beside.model or parsed.model,
            "vllm_version": beside.vllm_version or parsed.image_version,
            "given": tuple(sorted(given)),
            "args": EngineArgs(**given, env=tuple(env.items())),
            "extra_argv": parsed.extra,
        }
    )


def request_from_plan(file: Path, rank: int, beside: Request) -> Request:
    """The request of one plan of `vplan.fit/1`, or of `vplan.estimate/1` (its media flags are not in it: give them
    beside). What is given beside it wins."""
    return _request(read_plan_file(file, rank, f"--plan {file}"), beside)


def request_of_plan_alone(file: str, rank: int, beside: Request) -> tuple[Request, tuple[str, ...]]:
    """The request of a plan named by its file alone, with catalogs and source of `beside` but none of its flags, and
    notes for the reader."""
    alone = beside.model_copy(
        update={"model": "", "gpus": "", "vllm_version": None, "given": (), "args": EngineArgs(), "extra_argv": ()}
    )
    plan = read_plan_file(Path(file), rank, file)
    return _request(plan, alone), () if plan.fitted is not None else (_PARTIAL,)


def refuse_both(plan: Path | None, command: str | None) -> None:
    """A plan's file and a pasted command say the same thing twice."""
    if plan is not None and command is not None:
        raise InputError("--plan and --command exclude each other")


def chosen_request(plan: Path | None, rank: int, command: str | None, beside: Request) -> Request:
    """What is asked about: plan number `rank` of a file, a pasted command, or the flags beside them."""
    refuse_both(plan, command)
    if plan is not None:
        beside = request_from_plan(plan, rank, beside)
    elif command is not None:
        beside = request_from_command(command, beside)
    if not beside.model:
        raise InputError("--model, --plan or --command is missing")
    return beside


def command_of_plan(file: Path, rank: int) -> str:
    """The command line that one plan of `vplan.fit/1` states."""
    plan = read_plan_file(file, rank, f"--plan {file}")
    if plan.fitted is None:
        raise InputError(f"{plan.where}: only a fit states a command")
    with whole_plan(plan.where):
        return str(plan.fitted["command"])


def _request(plan: PlanFile, beside: Request) -> Request:
    """The plan's request, for the release and the cards of its estimate where nothing else is said."""
    with whole_plan(plan.where):
        version = beside.vllm_version or str(plan.estimate["vllm_version"])
        asked = beside.model_copy(update={"vllm_version": version, "gpus": beside.gpus or str(plan.estimate["gpus"])})
        if plan.fitted is not None:
            return request_from_command(plan.fitted["command"], asked)
        return _from_estimate(plan.estimate, asked)


def _from_estimate(estimate: dict[str, Any], beside: Request) -> Request:
    engine = estimate["engine"]
    if engine is None:
        raise InputError(
            f"the plan was refused before its flags were resolved ({estimate['rejection']['message']}): give the flags "
            "instead"
        )
    given = {name: engine[name] for name in _FROM_ENGINE if engine[name] is not None}
    given |= {name: getattr(beside.args, name) for name in beside.given}
    return beside.model_copy(
        update={
            "model": beside.model or str(estimate["model"]),
            "given": tuple(sorted(given)),
            "args": EngineArgs.checked(**given, env=beside.args.env),
        }
    )


def plain_argv(request: Request) -> list[str]:
    """`vllm serve` with exactly the flags that were given, for a check or a boot that no estimate stands behind."""
    argv = ["vllm", "serve", model_argument(request.model)]
    for name in request.given:
        value, flag = getattr(request.args, name), "--" + name.replace("_", "-")
        if value is True:
            argv.append(flag)
        elif value is False:
            argv.append("--no-" + flag.removeprefix("--"))
        else:
            argv += [flag, str(value)]
    return [*argv, *request.extra_argv]


def pixels(text: str | None) -> tuple[int, int]:
    """WIDTHxHEIGHT; 1024 x 1024 where nothing is said."""
    if text is None:
        return 1024, 1024
    width, cross, height = text.lower().partition("x")
    if not cross or not all(side.isdigit() and 0 < int(side) <= 65536 for side in (width, height)):
        raise InputError(f"--image-size: write WIDTHxHEIGHT in pixels, for example 1920x1080, not {text!r}")
    return int(width), int(height)


def answer_with_form(request: Request, assessment: Assessment, form: str, *, color: bool = False) -> str:
    """The text of an estimate that starts, ending in the form instead of the command."""
    from planner.report.text import estimate_text

    launch = api.launch_form(request, assessment, form)
    return f"{estimate_text(assessment.estimate, '', color=color).rstrip()}\n\n{launch}"
