"""What an earlier answer or a pasted command asks for, as the request that makes it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner import api
from planner.api import Request
from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.memory.assess import Assessment
from planner.serve.command import model_argument
from planner.serve.parse import RefusedCommand, parse_command

_FROM_ENGINE = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "max_model_len",
    "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "gpu_memory_utilization", "enforce_eager",
)  # fmt: skip


def request_from_command(command: str, beside: Request) -> Request:
    """The request that a pasted command makes; what is given beside it wins. Raises InputError where vLLM's parser
    refuses it."""
    try:
        parsed = parse_command(command, beside.vllm_version)
    except RefusedCommand as refused:
        raise InputError(f"vLLM refuses the command: {refused}") from None
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
    beside)."""
    document = _plan_document(file)
    try:
        if document["schema"] == "vplan.fit/1":
            return _from_fit(document, rank, beside, file)
        return _from_estimate(document, beside)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(f"--plan {file}: {type(error).__name__} {error} in a {document['schema']} document") from None


def command_of_plan(file: Path, rank: int) -> str:
    """The command line that one plan of `vplan.fit/1` states."""
    document = _plan_document(file)
    if document["schema"] != "vplan.fit/1":
        raise InputError(f"--plan {file}: only a fit states a command")
    try:
        return str(_chosen(document, rank, file)["command"])
    except (KeyError, TypeError) as error:
        raise InputError(f"--plan {file}: {type(error).__name__} {error} in a vplan.fit/1 document") from None


def _plan_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--plan {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--plan {file}: not JSON ({error})") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in ("vplan.fit/1", "vplan.estimate/1"):
        raise InputError(f"--plan {file}: expected vplan.fit/1 or vplan.estimate/1, found {schema!r}")
    assert isinstance(document, dict)
    return document


def _chosen(document: dict[str, Any], rank: int, file: Path) -> dict[str, Any]:
    plans: list[dict[str, Any]] = document["plans"]
    for plan in plans:
        if plan["rank"] == rank:
            return plan
    raise InputError(f"--plan {file}: it has {len(plans)} plans, none of rank {rank}")


def _from_fit(document: dict[str, Any], rank: int, beside: Request, file: Path) -> Request:
    plan = _chosen(document, rank, file)
    return request_from_command(plan["command"], _beside(beside, plan["estimate"]))


def _from_estimate(document: dict[str, Any], beside: Request) -> Request:
    engine = document["engine"]
    if engine is None:
        raise InputError(f"the plan is refused before it starts: {document['rejection']['message']}")
    given = {name: engine[name] for name in _FROM_ENGINE if engine[name] is not None}
    given |= {name: getattr(beside.args, name) for name in beside.given}
    asked = _beside(beside, document)
    return asked.model_copy(
        update={
            "model": beside.model or document["model"],
            "given": tuple(sorted(given)),
            "args": EngineArgs.checked(**given, env=beside.args.env),
        }
    )


def _beside(beside: Request, estimate: dict[str, Any]) -> Request:
    """The release and the cards that the estimate was for, where nothing else is said."""
    version = beside.vllm_version or str(estimate["vllm_version"])
    return beside.model_copy(update={"vllm_version": version, "gpus": beside.gpus or str(estimate["gpus"])})


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
