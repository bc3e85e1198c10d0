"""Flags of `vplan fit` that state a workload in the user's terms and ask for more than a list of plans."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from msgspec import Struct

from planner.api import Request
from planner.errors import InputError
from planner.search.space import AXES, SearchOptions
from planner.search.workload import RequestMix, TokenLengths
from planner.units import parse_human_int

_MOST_TOKENS = 10_000_000
_QUANTILES = re.compile(r"p50=([^,]+),p95=([^,]+)")


class SearchFlags(Struct, frozen=True):
    """As given. `pareto`, `sensitivity`, `variants`: which parts of planner.search.analysis are wanted."""

    prompt_tokens: str | None = None
    output_tokens: str | None = None
    requests: str | None = None
    request_rate: float | None = None
    shared_prefix_tokens: str | None = None
    percentile: float = 99.0
    nodes: int | None = None
    vary: tuple[str, ...] = ()
    pareto: bool = False
    sensitivity: bool = False
    variants: bool = False

    def placed(self, request: Request) -> Request:
        """The request with --nodes written into its GPUS. InputError where both name a number of machines."""
        if self.nodes is None:
            return request
        name, _, memory = request.gpus.partition("@")
        head, _, counts = name.partition(":")
        if request.gpus == "local" or "x" in counts:
            raise InputError(f"--nodes goes with --gpus NAME:COUNT, not with {request.gpus!r}")
        if not 1 <= self.nodes <= 1024:
            raise InputError(f"--nodes must be from 1 to 1024, not {self.nodes}")
        spelling = f"{head}:{counts or 1}x{self.nodes}" + (f"@{memory}" if memory else "")
        return request.model_copy(update={"gpus": spelling})

    def applied(self, options: SearchOptions) -> SearchOptions:
        """The options with the workload's lengths and the wider space. Reads the file of --requests."""
        vary = _axes(self.vary)
        mix, workload = self._mix(), options.workload
        rate = self.request_rate
        if rate is not None and not 0 < rate <= 1e6:
            raise InputError(f"--request-rate must be above 0 and at most 1000000 a second, not {rate:g}")
        if rate is not None and workload.concurrency is not None:
            raise InputError("--request-rate and --concurrency state the same thing twice: give one of them")
        workload = workload.model_copy(update={"mix": mix, "request_rate": rate})
        return options.model_copy(update={"workload": workload, "vary": vary})

    def _mix(self) -> RequestMix | None:
        if not 50 <= self.percentile <= 99.9:
            raise InputError(f"--percentile must be from 50 to 99.9, not {self.percentile:g}")
        shared = 0
        if self.shared_prefix_tokens is not None:
            shared = _tokens(self.shared_prefix_tokens, "--shared-prefix-tokens", least=0)
        lengths = (self.prompt_tokens, self.output_tokens)
        if self.requests is not None:
            if any(lengths):
                raise InputError("--requests brings its own lengths: leave out --prompt-tokens and --output-tokens")
            from planner.sources.request_lengths import read_request_lengths

            nothing = TokenLengths(p50=1, p95=1)
            return RequestMix(
                prompt=nothing, output=nothing, sample=read_request_lengths(self.requests), shared_prefix_tokens=shared,
                percentile=self.percentile,
            )  # fmt: skip
        if not any(lengths):
            for flag, value in (
                ("--request-rate", self.request_rate),
                ("--shared-prefix-tokens", self.shared_prefix_tokens),
            ):
                if value is not None:
                    raise InputError(f"{flag} needs lengths: give --prompt-tokens and --output-tokens, or --requests")
            return None
        prompt, output = lengths
        if prompt is None or output is None:
            raise InputError("--prompt-tokens and --output-tokens belong together: give both")
        return RequestMix(
            prompt=_lengths(prompt, "--prompt-tokens"), output=_lengths(output, "--output-tokens"),
            shared_prefix_tokens=shared, percentile=self.percentile,
        )  # fmt: skip


def search_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of SearchFlags; it receives them as one `flags`."""
    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "flags"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        mine = {name: values.pop(name) for name in _PARAMETERS}
        mine["vary"] = tuple(mine["vary"] or ())
        command(flags=SearchFlags(**mine), **values)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _PARAMETERS.items()
    ]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    signature = inspect.Signature([*kept, *parameters])
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return wrapper


def _option(kind: Any, name: str, text: str) -> Any:
    return Annotated[kind, typer.Option(name, help=text, show_default=False)]


_PARAMETERS: dict[str, tuple[Any, Any]] = {
    "prompt_tokens": (_option(str | None, "--prompt-tokens", "Tokens of text: 2000, or p50=800,p95=6000."), None),
    "output_tokens": (_option(str | None, "--output-tokens", "Tokens of an answer: 300, or p50=200,p95=900."), None),
    "requests": (_option(str | None, "--requests", "CSV or JSON Lines of prompt_tokens and output_tokens."), None),
    "request_rate": (_option(float | None, "--request-rate", "Requests a second, instead of --concurrency."), None),
    "shared_prefix_tokens": (
        _option(str | None, "--shared-prefix-tokens", "Tokens that every prompt begins with, such as instructions."),
        None,
    ),
    "percentile": (
        Annotated[float, typer.Option("--percentile", help="Share of moments at which the cache must hold them all.")],
        99.0,
    ),
    "nodes": (_option(int | None, "--nodes", "Machines of the cards that --gpus names."), None),
    "vary": (_option(list[str] | None, "--vary", f"Search these too: {', '.join(AXES)}, all."), None),
    "pareto": (_option(bool, "--pareto", "Every plan that no other beats, and the best for each objective."), False),
    "sensitivity": (_option(bool, "--sensitivity", "What each flag is worth from plan 1."), False),
    "variants": (_option(bool, "--variants", "Search the catalog's other checkpoints of the model too."), False),
}


def _axes(words: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for word in (part.strip() for text in words for part in text.split(",")):
        if word == "all":
            found += AXES
        elif word in AXES:
            found.append(word)
        else:
            raise InputError(f"--vary: choose from {', '.join(AXES)} or all, not {word!r}")
    return tuple(dict.fromkeys(found))


def _lengths(text: str, flag: str) -> TokenLengths:
    match = _QUANTILES.fullmatch(text.replace(" ", ""))
    if match is None and "=" in text:
        raise InputError(f"{flag}: write N or p50=N,p95=N, not {text!r}")
    p50, p95 = (_tokens(part, flag) for part in (match.groups() if match else (text, text)))
    if p95 < p50:
        raise InputError(f"{flag}: p95 ({p95}) must not be below p50 ({p50})")
    return TokenLengths(p50=p50, p95=p95)


def _tokens(text: str, flag: str, least: int = 1) -> int:
    try:
        value = parse_human_int(text)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    if not least <= value <= _MOST_TOKENS:
        raise InputError(f"{flag} must be from {least} to {_MOST_TOKENS}, not {value}")
    return value
