"""A pasted launch command -> the flags that change memory, and everything else kept as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from planner.engine.args import EngineArgs
from planner.errors import InputError, UnsupportedError
from planner.foreign import is_secret
from planner.releases.known import DEFAULT_VERSION
from planner.releases.removed_flags import REMOVED_VARIABLES
from planner.serve.flag_parser import GivenFlag, ParsedFlags, parse_flags
from planner.serve.launchers import Launch, Launcher, find_launch, launch_of
from planner.serve.neutral import is_neutral
from planner.serve.shell import split_script
from planner.serve.xinference import engine_arguments
from planner.values import Rejected, Rejection, Value, reject

_SPECULATIVE_PARTS = (
    ("spec_method", "method", "--spec-method"),
    ("spec_model", "model", "--spec-model"),
    ("spec_tokens", "num_speculative_tokens", "--spec-tokens"),
)
_COUNTS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "max_loras",
    "num_gpu_blocks_override",
)
_VERBATIM = ("limit_mm_per_prompt", "mm_processor_kwargs", "speculative_config", "hf_overrides")


class ParsedCommand(Value):
    """`model` is empty where the command does not tell it. `given`: the fields of `args` that were set. `extra`: the
    options that leave memory alone, spelt out, to be kept in any command rendered from this one. `vllm_version`: the
    release whose rules were applied; `image_version`: the one that a container image names."""

    launcher: Launcher
    model: str
    args: EngineArgs
    given: tuple[str, ...]
    extra: tuple[str, ...]
    vllm_version: str
    image: str | None = None
    image_version: str | None = None
    warnings: tuple[str, ...] = ()


class RefusedCommand(Rejected):
    """A launch that vLLM's parser refuses. `model`: as far as it was read."""

    def __init__(self, rejection: Rejection, model: str, vllm_version: str) -> None:
        super().__init__(rejection)
        self.model = model
        self.vllm_version = vllm_version


def parse_command(text: str, vllm_version: str | None = None) -> ParsedCommand:
    """Read a shell text with one vLLM launch in it; nothing of it is run.

    `vllm_version` None: the release a container image names, else the planner's default. Raises RefusedCommand where
    vLLM's own parser would refuse, with the replacement of a removed option; InputError for text that holds no
    launch; UnsupportedError for options that change memory in ways not modelled.
    """
    script = split_script(text)
    launch = find_launch(script)
    version = vllm_version or launch.image_version or DEFAULT_VERSION
    model = ""
    try:
        arguments, folder = launch.argv, None
        if launch.launcher == "xinference":
            arguments, folder = engine_arguments(launch.argv)
        flags = parse_flags(arguments, version)
        model = folder if folder is not None else flags.model or _model_option(flags)
        if flags.problems:
            _refuse_unresolved(script.unresolved, flags.problems[0].message)
            raise Rejected(flags.problems[0])
        planned, extra = _sorted_out(flags)
        _refuse_sizes(planned)
    except Rejected as refused:
        raise RefusedCommand(refused.rejection, model, version) from None
    _refuse_unresolved(script.unresolved, model, *map(str, planned.values()))
    env, warnings = _environment(launch, script.unresolved)
    kept = sorted(item for item in script.unresolved if any(item in word for word in extra))
    if any(given.flag.dest == "hf_token" for given in flags.given):
        warnings.append("--hf-token is left out: no secret goes into answers; set HF_TOKEN where the command runs")
    warnings += [f"{item} is kept as written: it is not expanded here" for item in kept]
    return ParsedCommand(
        launcher=launch.launcher,
        model=model,
        args=EngineArgs(**planned, env=tuple(env)),
        given=tuple(sorted(planned)),
        extra=tuple(extra),
        vllm_version=version,
        image=launch.image,
        image_version=launch.image_version,
        warnings=tuple(warnings),
    )


def check_command(argv: Sequence[str], vllm_version: str = DEFAULT_VERSION) -> tuple[Rejection, ...]:
    """Everything that the release's parser, or its check right after, holds against a launch; empty where nothing.

    Raises InputError where `argv` (assignments first, if any) starts no vLLM.
    """
    launch = launch_of(argv)
    if launch is None:
        raise InputError("the command does not start vLLM")
    try:
        arguments = engine_arguments(launch.argv)[0] if launch.launcher == "xinference" else launch.argv
        flags = parse_flags(arguments, vllm_version)
    except Rejected as refused:
        return (refused.rejection,)
    return (*flags.problems, *_contradictions(flags), *_gone_variables(launch))


def _sorted_out(flags: ParsedFlags) -> tuple[dict[str, Any], list[str]]:
    planned: dict[str, Any] = {}
    extra: list[str] = []
    speculative: dict[str, GivenFlag] = {}
    for given in flags.given:
        dest = given.flag.dest
        if dest in ("model", "hf_token"):
            continue
        if dest == "config":
            raise UnsupportedError(
                "--config", f"--config {given.texts[0]}: options in a file are not read; write them in the command"
            )
        if dest in EngineArgs.__struct_fields__:
            if given.value is not None:
                value = given.texts[0] if dest in _VERBATIM else given.value
                planned[dest] = tuple(value) if isinstance(value, list) else value
        elif dest.startswith("spec_"):
            speculative[dest] = given
        elif is_neutral(given.flag, given.value):
            extra += given.argv()
        else:
            raise UnsupportedError(
                given.flag.name, f"{' '.join(given.argv())} may change GPU memory in a way this planner does not model"
            )
    if speculative:
        planned["speculative_config"] = _speculative(planned.get("speculative_config"), speculative)
    return planned, extra


def _speculative(text: Any, parts: dict[str, GivenFlag]) -> str:
    """--spec-method, --spec-model and --spec-tokens as one --speculative-config.

    Source: vLLM 0.26.0 engine/arg_utils.py:1741.
    """
    config = json.loads(text) if isinstance(text, str) else {}
    for dest, key, option in _SPECULATIVE_PARTS:
        if dest in parts and parts[dest].value is not None:
            if key in config:
                raise reject("flag", f"{option} and --speculative-config['{key}'] are mutually exclusive")
            config[key] = parts[dest].value
    return json.dumps(config)


def _refuse_sizes(planned: dict[str, Any]) -> None:
    """Counts below one, as the configuration classes of vLLM refuse them."""
    for name in _COUNTS:
        value = planned.get(name)
        if value is not None and value < 1:
            raise reject("flag", f"{name}: Input should be greater than or equal to 1, found {value}")


def _refuse_unresolved(unresolved: frozenset[str], *texts: str) -> None:
    for item in unresolved:
        if any(item in text for text in texts):
            raise InputError(f"--command: {item} decides the plan; write its value")


def _model_option(flags: ParsedFlags) -> str:
    return next((str(given.value) for given in flags.given if given.flag.dest == "model"), "")


def _environment(launch: Launch, unresolved: frozenset[str]) -> tuple[list[tuple[str, str]], list[str]]:
    env: list[tuple[str, str]] = []
    warnings: list[str] = []
    for name, value in launch.env:
        if is_secret(name):
            warnings.append(f"{name} is left out: no secret goes into answers; set it where the command runs")
            continue
        hidden = next((item for item in unresolved if item in value), None)
        if hidden and name.startswith("VLLM_"):
            raise InputError(f"--command: {name} depends on {hidden}; write its value")
        if hidden:
            warnings.append(f"{name} is left out: {hidden} is not expanded here")
            continue
        env.append((name, value))
    warnings += [f"{problem.message} (now: {problem.fix[0]})" for problem in _gone_variables(launch)]
    return env, warnings


def _gone_variables(launch: Launch) -> tuple[Rejection, ...]:
    """Variables that vLLM passes over. Source: vLLM 0.26.0 envs.py:2090 validate_environ."""
    gone = dict(REMOVED_VARIABLES)
    return tuple(
        Rejection(
            bottleneck="flag",
            message=f"Unknown vLLM environment variable detected: {name}",
            fix=(gone[name],),
        )
        for name, _ in launch.env
        if name in gone
    )


def _contradictions(flags: ParsedFlags) -> list[Rejection]:
    """Source: vLLM 0.26.0 entrypoints/openai/cli_args.py:383 validate_parsed_serve_args."""
    values = {given.flag.dest: given.value for given in flags.given}
    found: list[Rejection] = []
    if values.get("enable_auto_tool_choice") and not values.get("tool_call_parser"):
        found.append(
            _problem("Error: --enable-auto-tool-choice requires --tool-call-parser", "--tool-call-parser NAME")
        )
    if values.get("enable_log_outputs") and not values.get("enable_log_requests"):
        found.append(_problem("Error: --enable-log-outputs requires --enable-log-requests", "--enable-log-requests"))
    if values.get("enable_per_request_metrics") and values.get("disable_log_stats"):
        message = (
            "Error: --enable-per-request-metrics requires engine statistics logging; remove --disable-log-stats to "
            "enable per-request metrics."
        )
        found.append(_problem(message, "remove --disable-log-stats"))
    return found


def _problem(message: str, fix: str) -> Rejection:
    return Rejection(bottleneck="flag", message=re.sub(r"\s+", " ", message), fix=(fix,))
