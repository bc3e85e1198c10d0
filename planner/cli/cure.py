"""A failing launch and what is known of it -> the launch that works, as far as the ledger can tell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from planner import api
from planner.doctor.edits import CommandWords
from planner.doctor.failure import Edit, Failure, Step
from planner.doctor.launch import LoggedLaunch
from planner.engine.args import EngineArgs
from planner.errors import PlannerError
from planner.memory.result import Estimate
from planner.serve.command import shell_command
from planner.serve.launchers import launch_of
from planner.serve.parse import ParsedCommand, RefusedCommand, parse_command
from planner.serve.shell import split_script
from planner.values import Rejection

_ROUNDS = 12
_FLAG_FIX = re.compile(r"(?:leave out |remove )?(--[a-z][a-z0-9-]*)(?: (.+))?$", re.DOTALL)
_RENAME_UNKNOWN = re.compile(r"unrecognized arguments: (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Cure:
    """`command`: empty where the log tells none. `before`, `after`: the ledger of the launch as it was and as cured;
    None where it could not be computed, `unchecked` says why. `done`: the steps that were made, in words."""

    command: str = ""
    before: Estimate | None = None
    after: Estimate | None = None
    unchecked: str | None = None
    done: tuple[str, ...] = ()


def launch_words(command: str) -> list[str]:
    """The words of the one launch in a shell text, its assignments first; empty where there is none."""
    try:
        commands = split_script(command).commands
    except PlannerError:
        return []
    return next((list(words) for words in commands if _starts_vllm(words)), [])


def options_given(words: list[str], release: str) -> dict[str, object]:
    """The engine options in the words, by vLLM's names, as far as its parser takes them."""
    try:
        parsed = parse_command(shlex.join(words), release)
    except (RefusedCommand, PlannerError):
        return {}
    return {name: getattr(parsed.args, name) for name in parsed.given}


def cure(
    words: list[str], failure: Failure, figures: Mapping[str, str], asked: api.Request, launch: LoggedLaunch
) -> Cure:
    """Change the launch by the failure's steps, then by the ledger's own advice, until it starts or nothing is left.

    `asked`: what the user said beside the log: cards, model, release.
    """
    if not words:
        return Cure(unchecked="the log has no launch command; give it with --command")
    changed, done = CommandWords(words, asked.version), []
    changed.apply(unknown_options(changed.words, asked.version), figures)
    before, unchecked = _ledger(changed.words, asked, launch)
    steps = list(failure.cure)
    first = _next_step(changed, steps, figures)
    if first:
        done.append(first)
    after = before
    for _ in range(_ROUNDS):
        after, unchecked = _ledger(changed.words, asked, launch)
        if after is None or (after.starts and not (failure.id.startswith("oom_") and _short_bytes(after) > 0)):
            break
        if after.rejection is not None:
            made = advised(changed, after.rejection, figures) or _next_step(changed, steps, figures)
        else:
            made = _next_step(changed, steps, figures) or _with_room(changed, after)
        if not made:
            break
        done.append(made)
    changed.apply(unknown_options(changed.words, asked.version), figures)
    return Cure(as_line(changed.words), before, after, unchecked, _last_of_each(done))


def _short_bytes(estimate: Estimate) -> int:
    """What a full media batch lacks on the card of an engine that starts; 0 or less where it fits."""
    gpu = estimate.per_gpu
    return (
        0
        if gpu is None
        else gpu.used_after_startup_bytes + gpu.vision_encoder_runtime_peak_bytes - gpu.total_memory_bytes
    )


def _with_room(changed: CommandWords, estimate: Estimate) -> str:
    """A share of the card that leaves the encoder its peak, where the cache can give it."""
    gpu = estimate.per_gpu
    assert gpu is not None
    share = int((gpu.requested_memory_bytes - _short_bytes(estimate)) / gpu.total_memory_bytes * 1000) / 1000
    if share <= 0.1 or not changed.apply((Edit("set", "--gpu-memory-utilization", f"{share:g}"),), {}):
        return ""
    return f"--gpu-memory-utilization {share:g}"


def _last_of_each(done: list[str]) -> tuple[str, ...]:
    """Steps in order; of several values of one option only the last."""
    last = {step.split()[0] if step.startswith("--") else step: step for step in done}
    return tuple(last.values())


def as_line(words: list[str]) -> str:
    """The words of a launch as one shell line, assignments first."""
    count = next((index for index, word in enumerate(words) if not re.match(r"[A-Za-z_]\w*=", word)), len(words))
    env = dict(word.split("=", 1) for word in words[:count])
    return shell_command(words[count:], env)


def _starts_vllm(words: tuple[str, ...]) -> bool:
    try:
        return launch_of(words) is not None
    except PlannerError:
        return False


def unknown_options(words: list[str], release: str) -> tuple[Edit, ...]:
    """The options of an older release in the words, as a change to their successors."""
    try:
        parse_command(shlex.join(words), release)
    except RefusedCommand as refused:
        match = _RENAME_UNKNOWN.search(refused.rejection.message)
        return (Edit("rename", " ".join(match[1].split()).replace("{", "{{").replace("}", "}}")),) if match else ()
    except PlannerError:
        pass
    return ()


def _next_step(changed: CommandWords, steps: list[Step], figures: Mapping[str, str]) -> str:
    while steps:
        step = steps.pop(0)
        if step.edits and changed.apply(step.edits, figures):
            return step.text or "and " + ", ".join(f"{edit.name} {edit.value}".strip() for edit in step.edits)
    return ""


def advised(changed: CommandWords, rejection: Rejection, figures: Mapping[str, str]) -> str:
    """The first of a rejection's fixes that is an option, made."""
    match = _RENAME_UNKNOWN.search(rejection.message)
    if match:
        options = " ".join(match[1].split())
        return (
            f"without {options}"
            if changed.apply((Edit("rename", options.replace("{", "{{").replace("}", "}}")),), {})
            else ""
        )
    for fix in rejection.fix:
        found = _FLAG_FIX.match(fix)
        if not found:
            continue
        leave_out = fix.startswith(("leave out", "remove"))
        value = "" if found[2] is None else shlex.split(found[2])[0]
        edit = Edit("drop" if leave_out else "set", found[1], value.replace("{", "{{").replace("}", "}}"))
        if changed.apply((edit,), figures):
            return fix
    return ""


def _ledger(words: list[str], asked: api.Request, launch: LoggedLaunch) -> tuple[Estimate | None, str | None]:
    """The estimate of a launch, or why there is none."""
    try:
        parsed = parse_command(shlex.join(words), asked.version)
        request = _request(parsed, asked)
        request = request.model_copy(update={"gpus": asked.gpus or _cards(launch, request.args)})
        if not request.gpus:
            return None, "give the cards with --gpus to have the cure checked by the ledger"
        return api.estimate(request).estimate, None
    except RefusedCommand as refused:
        return _refused(refused, asked), None
    except PlannerError as error:
        return None, str(error)


def _request(parsed: ParsedCommand, asked: api.Request) -> api.Request:
    return asked.model_copy(
        update={
            "model": asked.model or parsed.model,
            "given": parsed.given,
            "args": parsed.args,
            "extra_argv": parsed.extra,
        }
    )


def _cards(launch: LoggedLaunch, args: EngineArgs) -> str:
    """As many of the card that the log names as the launch takes."""
    if launch.card is None:
        return ""
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    return f"{launch.card}:{ranks}"


def _refused(refused: RefusedCommand, asked: api.Request) -> Estimate:
    return Estimate(
        model=asked.model or refused.model, gpus=asked.gpus, vllm_version=refused.vllm_version, verdict="rejected",
        rejection=refused.rejection, engine=None, per_gpu=None, kv_cache=None,
    )  # fmt: skip
