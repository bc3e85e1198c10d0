"""Start the engine as its command says, wait until it serves, read it back, and end it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import OutsideError
from planner.verify.nvml import DeviceUse, read_devices, used_beyond, visible
from planner.verify.outcome import Outcome
from planner.verify.process import HUNG_PATIENCE_SECONDS, Supervised
from planner.verify.readings import (
    Failure,
    Figure,
    find_failure,
    last_words,
    partial_reading,
    read_log,
    version_in,
)
from planner.verify.requests import RequestResult, Workload, cache_config, get, send_all

Progress = Callable[[str], None]

_POLL_SECONDS = 0.2
_MILESTONES = (
    ("Starting to load model", "loading the model"),
    ("Loading model from scratch", "loading the model"),
    ("Model loading took", "model loaded, profiling"),
    ("torch.compile took", "compiled"),
    ("Available KV cache memory", "profiled"),
    ("GPU KV cache size", "cache allocated"),
    ("Capturing CUDA graphs", "capturing CUDA graphs"),
    ("Graph capturing finished", "CUDA graphs captured"),
    ("init engine", "engine initialised"),
    ("Starting vLLM", "starting the server"),
)


@dataclass(frozen=True, slots=True)
class ServerJob:
    """A server to start. `argv` is run as it stands, plus --host and --port where it names none. `workload` None: no
    requests are sent."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    vllm_version: str
    workload: Workload | None
    timeout_seconds: float
    log: Path


def boot_server(job: ServerJob, progress: Progress) -> Outcome:
    """Run the server to readiness, read log, /metrics and NVML, send the requests, and leave nothing behind.

    Raises OutsideError where the port is taken, the command cannot be started, the log lacks a needed line, or a
    process survives.
    """
    argv, host, port = _with_address(job.argv)
    _refuse_taken_port(host, port)
    before = _devices(job.env)
    started = time.monotonic()
    progress(f"starting {argv[0]} (log: {job.log})")
    with Supervised(argv, job.env, job.log, Path.cwd()) as engine:
        lines, outcome = _until_ready(engine, f"http://{host}:{port}", started + job.timeout_seconds, progress)
        seconds = time.monotonic() - started
        if outcome is None:
            progress(f"ready after {seconds:.0f} s")
            outcome = _read_back(job, engine, lines, f"http://{host}:{port}", before, progress)
        else:
            found = partial_reading(lines, version_in(lines) or job.vllm_version)
            outcome = replace(outcome, figures=found.figures, words=found.words)
        progress("stopping the engine")
    return replace(outcome, seconds=seconds, left_behind_bytes=_left_behind(before, job.env))


def _until_ready(
    engine: Supervised, base: str, deadline: float, progress: Progress
) -> tuple[list[str], Outcome | None]:
    """The log so far, and None once /health answers; else how it ended."""
    lines: list[str] = []
    told: set[str] = set()
    while True:
        code = engine.exit_code()
        fresh = engine.new_lines()
        lines += fresh
        tell_milestones(fresh, told, progress)
        if code is not None:
            return lines, ended(lines, code)
        if _healthy(base):
            lines += engine.new_lines()
            return lines, None
        if time.monotonic() > deadline:
            engine.patience_seconds = HUNG_PATIENCE_SECONDS
            last = last_words(lines)
            return lines, Outcome("timeout", Failure("timeout", f"not ready in time; its last line: {last}"))
        time.sleep(_POLL_SECONDS)


def tell_milestones(lines: Sequence[str], told: set[str], progress: Progress) -> None:
    """Report each stage of startup once."""
    for line in lines:
        for mark, text in _MILESTONES:
            if mark in line and text not in told:
                told.add(text)
                progress(text)


def ended(lines: Sequence[str], code: int) -> Outcome:
    """How a process that ended by itself ended: refused with a sentence of vLLM's, or crashed."""
    failure = find_failure(lines)
    if failure is not None:
        return Outcome("refused", failure)
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Outcome("crashed", Failure("crash", f"{how}: {last_words(lines)}"))


def _healthy(base: str) -> bool:
    try:
        return get(base + "/health", 2.0)[0] == 200
    except OSError:
        return False


def _read_back(
    job: ServerJob, engine: Supervised, lines: list[str], base: str, before: tuple[DeviceUse, ...], progress: Progress
) -> Outcome:
    version = version_in(lines) or job.vllm_version
    notes = []
    if version != job.vllm_version:
        notes.append(f"the engine is vLLM {version}, the plan is for {job.vllm_version}")
    reading = read_log(lines, version)
    try:
        labels = cache_config(get(base + "/metrics")[1])
    except OSError as error:
        raise OutsideError(f"/metrics does not answer: {error}") from None
    for name in ("num_gpu_blocks", "block_size"):
        if labels.get(name, "").isdigit():
            reading.figures[name] = Figure(int(labels[name]))
    at_rest = used_beyond(before, _devices(job.env)) if before else ()
    results: tuple[RequestResult, ...] = ()
    loaded: tuple[int, ...] = ()
    if job.workload is not None:
        results = send_all(base, job.workload, job.timeout_seconds, progress)
        loaded = used_beyond(before, _devices(job.env)) if before else ()
    code = engine.exit_code()
    if code is not None:
        lines += engine.new_lines()
        return replace(ended(lines, code), figures=reading.figures, words=reading.words, requests=results)
    if at_rest:
        reading.figures["used_after_startup_bytes"] = Figure(max(at_rest))
    return Outcome(
        "started", figures=reading.figures, words=reading.words, requests=results, device_used_bytes=at_rest,
        device_used_loaded_bytes=loaded, notes=tuple(notes),
    )  # fmt: skip


def _with_address(argv: Sequence[str]) -> tuple[list[str], str, int]:
    """The command with an address that nothing else uses, where it names none, and that address."""
    command = list(argv)
    host = _option(command, "--host")
    port = _option(command, "--port")
    if host is None:
        host = "127.0.0.1"
        command += ["--host", host]
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command += ["--port", port]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise OutsideError(f"--port {port} is not a port")
    return command, "127.0.0.1" if host in ("0.0.0.0", "::", "") else host, int(port)


def _option(argv: Sequence[str], name: str) -> str | None:
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _refuse_taken_port(host: str, port: int) -> None:
    """Another server on the port would answer /health in the engine's place."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((host, port)) == 0:
            raise OutsideError(
                f"port {port} is taken by another program; stop it or give another --port in the command"
            )


def _devices(env: Mapping[str, str]) -> tuple[DeviceUse, ...]:
    return visible(read_devices() or (), env.get("CUDA_VISIBLE_DEVICES"))


def _left_behind(before: tuple[DeviceUse, ...], env: Mapping[str, str]) -> tuple[int, ...]:
    """What stays used on each device, once the driver had a few seconds to take it back."""
    if not before:
        return ()
    deadline = time.monotonic() + 5.0
    while True:
        left = used_beyond(before, _devices(env))
        if max(left, default=0) <= 0 or time.monotonic() > deadline:
            return left
        time.sleep(_POLL_SECONDS)
