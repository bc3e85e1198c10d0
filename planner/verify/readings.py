"""A startup log -> the figures in it, each with the rounding it was printed with, or why the engine did not start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from planner.errors import OutsideError
from planner.units import GIB
from planner.verify.patterns import FAILURES, PROFILE_BUFFER_BYTES, LogPattern, patterns_for

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LOADING = re.compile(r", in load_model$")
_PREFIX = re.compile(r"^(?:\([A-Za-z0-9_ ]+(?:pid=)?[0-9]*\) )?(?:ERROR [0-9: -]+\[[^\]]*\] ?)?\s*(?:\w+Error: )?")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as it was read. `rounding`: the true value lies at most this far away (a log prints GiB with two
    decimals)."""

    value: float
    rounding: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a log says: numbers by the names of the contract, and words (`model_runner`, `attention_backend`, ...)."""

    figures: dict[str, Figure] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine did not start. `bottleneck`: as in the contract, or port, timeout, crash, unreadable."""

    bottleneck: str
    message: str


def read_log(lines: Iterable[str], vllm_version: str) -> Reading:
    """The figures of the log of an engine that started.

    Raises OutsideError naming the first pattern that the release must print and the log does not have.
    """
    text = [clean(line) for line in lines]
    patterns = patterns_for(vllm_version)
    reading = Reading()
    for pattern in patterns:
        found = [match[1] for line in text for match in pattern.expression.finditer(line)]
        if found:
            _keep(reading, pattern, found)
        elif pattern.needed:
            raise OutsideError(
                f"the log of vLLM {vllm_version} has no line for {pattern.field} "
                f"(looked for {pattern.expression.pattern!r})"
            )
    _sharpen(reading)
    return reading


def partial_reading(lines: Iterable[str], vllm_version: str) -> Reading:
    """The figures that the log of an engine that did not start got to."""
    text = [clean(line) for line in lines]
    reading = Reading()
    for pattern in patterns_for(vllm_version):
        found = [match[1] for line in text for match in pattern.expression.finditer(line)]
        if found:
            _keep(reading, pattern, found)
    return reading


def version_in(lines: Iterable[str]) -> str | None:
    """The release that printed the log, where it says so."""
    for line in lines:
        match = re.search(r"(?:Initializing an? (?:V1 )?LLM engine \(v|vLLM API server version )([0-9][0-9.]*)", line)
        if match:
            return match[1].rstrip(".")
    return None


def find_failure(lines: Sequence[str]) -> Failure | None:
    """vLLM's own reason in a log, the most telling sentence first; None where the log has none.

    Only V1's runner says in words that loading ran out of memory; of V2's the traceback tells.
    """
    text = [clean(line) for line in lines]
    loading = any(_LOADING.search(line) for line in text)
    for pattern in FAILURES:
        for line in text:
            match = pattern.expression.search(line)
            if match:
                weights = loading and pattern.bottleneck == "device_memory"
                return Failure("weights" if weights else pattern.bottleneck, match[0].strip())
    return None


def last_words(lines: Sequence[str]) -> str:
    """The line to show of a process that ended without a known reason: its last error, else its last line."""
    text = [clean(line).strip() for line in lines if line.strip()]
    errors = [line for line in text if re.search(r"\w+(?:Error|Exception)\b", line)]
    chosen = errors[-1] if errors else text[-1] if text else "no output"
    return _PREFIX.sub("", chosen)[:300]


def clean(line: str) -> str:
    """A line without colours, line ends and bytes that are no text."""
    return _ANSI.sub("", line).replace("\x00", "").rstrip("\r\n")


def _keep(reading: Reading, pattern: LogPattern, found: list[str]) -> None:
    if pattern.unit == "text":
        reading.words[pattern.field] = found[0] if pattern.pick == "first" else found[-1]
        return
    figures = [_figure(pattern, text) for text in found]
    if pattern.pick == "smallest":
        chosen = min(figures, key=lambda figure: figure.value)
    elif pattern.pick == "largest":
        chosen = max(figures, key=lambda figure: figure.value)
    else:
        chosen = figures[0] if pattern.pick == "first" else figures[-1]
    reading.figures[pattern.field] = chosen


def _figure(pattern: LogPattern, text: str) -> Figure:
    text = text.replace(",", "")
    decimals = len(text.partition(".")[2])
    try:
        if pattern.unit == "gib":
            half = 0.005 if decimals <= 2 else 0.5 * 10.0**-decimals
            return Figure(float(text) * GIB, half * GIB)
        if pattern.unit == "ratio":
            return Figure(float(text), 0.5 * 10.0**-decimals)
        return Figure(int(text))
    except ValueError:
        raise OutsideError(f"the log's {pattern.field} is no number: {text!r}") from None


def _sharpen(reading: Reading) -> None:
    """Replace the rounded cache memory by the exact one, which vLLM's own advice gives away without CUDA graphs.

    advice = requested - weights - peak - non-torch - graphs - 150 MiB; without graphs that is available - 150 MiB.
    """
    advice = reading.figures.pop("suggested_cache_bytes", None)
    graphs = reading.figures.pop("graph_memory_in_summary_bytes", None)
    rounded = reading.figures.get("available_kv_cache_bytes")
    if advice is None or graphs is None or rounded is None or graphs.value > 0:
        return
    exact = advice.value + PROFILE_BUFFER_BYTES
    if abs(exact - rounded.value) <= rounded.rounding + 1:
        reading.figures["available_kv_cache_bytes"] = Figure(exact)
