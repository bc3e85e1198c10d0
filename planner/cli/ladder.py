"""`vplan fit --from-command`: a failing launch in, the cheapest changes that let it start out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

import typer

from planner import api
from planner.cli.cure import advised, as_line, launch_words, unknown_options
from planner.cli.output import wants_color, write
from planner.doctor.edits import CommandWords
from planner.doctor.failure import Edit
from planner.errors import InputError
from planner.memory.result import Estimate
from planner.report.ladder import Correction, LadderAnswer, change_text, ladder_json, ladder_text
from planner.search.ladder import Ladder, Step, climb
from planner.serve.parse import ParsedCommand, RefusedCommand, parse_command
from planner.sources.checkpoints import quantized_checkpoints
from planner.values import Rejection

_CORRECTIONS = 8


def answer_ladder(command: str, beside: api.Request, concurrency: int, format: str, output: str | None) -> None:  # noqa: A002
    """Print the ladder of a pasted launch; exit code 1 where nothing lets it start.

    `beside`: what was said besides the command: cards, release, model, catalogs. Its flags go over the command's.
    """
    if format not in ("text", "json"):
        raise InputError(f"--format: a ladder is text or json, not {format!r}")
    words = launch_words(command)
    if not words:
        raise InputError("--from-command: no vLLM launch in it")
    parsed = _parsed(words, beside)
    release = beside.vllm_version or (parsed.image_version if parsed else None)
    beside = beside.model_copy(update={"gpus": beside.gpus or "local", "vllm_version": release})
    answer = _answer(words, beside, concurrency)
    write(ladder_json(answer) if format == "json" else ladder_text(answer, color=wants_color(output)), output)
    if not answer.starts:
        raise typer.Exit(1)


def _answer(words: list[str], beside: api.Request, concurrency: int) -> LadderAnswer:
    changed = CommandWords(words, beside.version)
    for name in beside.given:
        value = getattr(beside.args, name)
        changed.apply((_edit(name, value),), {})
    for name, value in beside.args.env:
        changed.apply((Edit("env", name, value.replace("{", "{{").replace("}", "}}")),), {})
    before = _estimate(changed.words, beside)
    current, corrections = before, list[Correction]()
    while current.engine is None and current.rejection is not None and len(corrections) < _CORRECTIONS:
        made = _corrected(changed, current.rejection, beside.version)
        if not made:
            return _final(before, corrections, None, changed, None)
        corrections.append(Correction(made, current.rejection.message))
        current = _estimate(changed.words, beside)
    parsed = parse_command(shlex.join(changed.words), beside.version)
    request = _request(parsed, beside)
    ladder = climb(
        api.load_spec(request), api.load_gpus(request), request.args, request.version, given=request.given,
        concurrency=concurrency, checkpoints=_checkpoints(request),
        load=lambda name: api.load_spec(request.model_copy(update={"model": name})), confidence=request.confidence,
    )  # fmt: skip
    if ladder.after is None:
        return _final(before, corrections, ladder, changed, None)
    for step in ladder.steps:
        _make(changed, step, parsed.model)
    after = _estimate(changed.words, request.model_copy(update={"gpus": ladder.gpus.spelling, "model": ""}), request)
    if not after.starts:
        raise InputError(f"the changes cannot be written into this command; make them by hand: {_in_words(ladder)}")
    return _final(before, corrections, ladder, changed, after)


def _final(
    before: Estimate, corrections: list[Correction], ladder: Ladder | None, changed: CommandWords,
    after: Estimate | None,
) -> LadderAnswer:  # fmt: skip
    line = as_line(changed.words)
    words = shlex.split(line)
    count = next((index for index, word in enumerate(words) if "=" not in word), len(words))
    env = dict(word.split("=", 1) for word in words[:count])
    return LadderAnswer(before, corrections, ladder, line, words[count:], env, after)


def _corrected(changed: CommandWords, rejection: Rejection, release: str) -> str:
    """The change that a refusal of vLLM's asks for, made; empty where it asks for none."""
    old = list(changed.words)
    if changed.apply(unknown_options(changed.words, release), {}):
        return f"without {' '.join(word for word in old if word not in changed.words)}".rstrip()
    return advised(changed, rejection, {})


def _estimate(words: list[str], beside: api.Request, fallback: api.Request | None = None) -> Estimate:
    """What the ledger says of a launch; a refusal of vLLM's parser is an answer."""
    try:
        parsed = parse_command(shlex.join(words), beside.version)
    except RefusedCommand as refused:
        return Estimate(
            model=beside.model or refused.model, gpus=beside.gpus, vllm_version=beside.version, verdict="rejected",
            rejection=refused.rejection, engine=None, per_gpu=None, kv_cache=None,
        )  # fmt: skip
    return api.estimate(_request(parsed, beside, fallback)).estimate


def _parsed(words: list[str], beside: api.Request) -> ParsedCommand | None:
    try:
        return parse_command(shlex.join(words), beside.vllm_version)
    except RefusedCommand:
        return None


def _request(parsed: ParsedCommand, beside: api.Request, fallback: api.Request | None = None) -> api.Request:
    model = beside.model or parsed.model or (fallback.model if fallback else "")
    if not model:
        raise InputError("--model is missing: the command does not tell which model it loads")
    return beside.model_copy(
        update={"model": model, "given": parsed.given, "args": parsed.args, "extra_argv": parsed.extra}
    )


def _checkpoints(request: api.Request) -> Iterable[str]:
    """Catalog entries of the same model in fewer bits, where the command names the model itself."""
    from planner.sources.model_catalog import load_model_catalog

    return quantized_checkpoints(request.model, load_model_catalog(request.model_catalogs).ids())


def _make(changed: CommandWords, step: Step, model: str) -> None:
    if step.change.checkpoint is not None:
        changed.words = [step.change.checkpoint if word == model else word for word in changed.words]
    for name, value in step.change.fields:
        if step.change.checkpoint is not None and value in (None, "auto"):
            value = None
        changed.apply((_edit(name, value),), {})


def _edit(name: str, value: object) -> Edit:
    flag = "--" + name.replace("_", "-")
    if value is None or value is False:
        return Edit("drop", flag)
    text = "" if value is True else str(value)
    return Edit("set", flag, text.replace("{", "{{").replace("}", "}}"))


def _in_words(ladder: Ladder) -> str:
    return ", ".join(change_text(step.change) for step in ladder.steps)
