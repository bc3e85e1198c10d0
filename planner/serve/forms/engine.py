"""Launch forms that build the engine inside another process: Python's `LLM(...)` and Xinference.

Such a process has often touched CUDA before vLLM forks its workers, which CUDA does not survive ("Cannot re-initialize
CUDA in forked subprocess"); hence VLLM_WORKER_MULTIPROC_METHOD=spawn in both.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.serve.command import shell_command
from planner.serve.flag_parser import GivenFlag, parse_flags
from planner.serve.launch import LaunchPlan, advice

_SPAWN = ("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
_SPAWN_REASON = "Workers must not be forked from a process that may have touched CUDA."
_SIZE = re.compile(r"-([0-9]+(?:\.[0-9]+)?)b(?:-|$)", re.IGNORECASE)
_UNLISTED = re.compile(r"[-_.]?(?:quantized\.)?w\d+a\d+(?:[-_.]fp8)?$|[-_.]?nvfp4$|[-_.]?mxfp4$", re.IGNORECASE)
_FORMATS = (("awq", "awq", "Int4"), ("gptq-int4", "gptq", "Int4"), ("gptq-int8", "gptq", "Int8"), ("fp8", "fp8", "fp8"))


def python(plan: LaunchPlan) -> str:
    """A script around `LLM(...)` with the plan's engine arguments; options of the HTTP server have no place in it."""
    values: dict[str, Any] = {"model": plan.model}
    values |= {given.flag.dest: _data(given.value) for given in _engine_flags(plan)}
    if values.get("data_parallel_size", 1) != 1:
        raise UnsupportedError("data_parallel_size", "the python form has no data parallelism; use the serve form")
    environment = plan.host_environment
    environment.setdefault(*_SPAWN)
    assignments = [f"os.environ[{name!r}] = {value!r}" for name, value in environment.items()]
    return "\n".join([
        *(f"# {note}" for note in advice(plan)),
        "import os",
        "",
        f"# {_SPAWN_REASON}",
        *assignments,
        "",
        "from vllm import LLM, SamplingParams",
        "",
        'if __name__ == "__main__":',
        "    llm = LLM(",
        *(f"        {name}={value!r}," for name, value in values.items()),
        "    )",
        '    answers = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=64))',
        "    print(answers[0].outputs[0].text)",
    ])  # fmt: skip


def xinference(plan: LaunchPlan) -> str:
    """`xinference launch` for the same engine; the variables belong to the server that is started first.

    Xinference knows models by names of its own. The name, size and format below are read off the model's name and may
    have to be corrected. A checkpoint in a storage that Xinference has no entries for is downloaded first: its entry of
    the same name would load the unquantized weights.
    """
    unlisted = _UNLISTED.search(plan.model) is not None and not plan.is_local
    folder = f"models/{plan.name}"
    words = ["xinference", "launch", "--model-engine", "vLLM", *_family(plan.model), "--n-gpu", str(plan.gpus_per_node)]
    if plan.is_local:
        words += ["--model-path", plan.folder]
    trusts = False
    for given in _engine_flags(plan):
        if given.flag.dest == "trust_remote_code":
            trusts = bool(given.value)
        elif given.flag.arity in ("switch", "bool"):
            words += [f"--{given.flag.dest}", str(given.value)]
        elif len(given.texts) != 1:
            raise UnsupportedError(given.flag.name, f"xinference launch cannot pass the list {given.flag.name}")
        else:
            words += [f"--{given.flag.dest}", _plain(given)]
    words += ["--trust-remote-code", str(trusts).lower()]
    environment = plan.host_environment
    environment.setdefault(*_SPAWN)
    command = shlex.join(words) + (f' --model-path "$PWD/{folder}"' if unlisted else "")
    fetched = [
        "# Xinference has no entry for this storage, so the checkpoint is fetched by itself:",
        shlex.join(["hf", "download", plan.model, "--local-dir", folder]),
    ]
    return "\n".join([
        *(f"# {note}" for note in advice(plan)),
        *(fetched if unlisted else ()),
        f"# {_SPAWN_REASON} Set before the server starts:",
        shell_command(["xinference-local", "--host", "0.0.0.0", "--port", "9997"], environment),
        "# in a second terminal; check name, size and format against `xinference registrations -t LLM`:",
        command,
    ])  # fmt: skip


def _engine_flags(plan: LaunchPlan) -> list[GivenFlag]:
    parsed = parse_flags(plan.argv[2:], plan.vllm_version)
    if parsed.problems:
        raise InputError(parsed.problems[0].message)
    return [given for given in parsed.given if given.flag.engine]


def _data(value: Any) -> Any:
    """A value whose repr reads back as itself; JSON's NaN and Infinity do not."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise InputError(f"{value!r} cannot be written as a Python literal") from None
    return value


def _plain(given: GivenFlag) -> str:
    """Whole numbers without suffixes: Xinference reads `32k` as text."""
    return str(given.value) if isinstance(given.value, int) else given.texts[0]


def _family(model: str) -> list[str]:
    """Xinference's name, size and format, as the model's own name suggests them."""
    name = _UNLISTED.sub("", model.rstrip("/").rpartition("/")[2])
    model_format, quantization = "pytorch", "none"
    for mark, known, bits in _FORMATS:
        if mark in name.lower():
            model_format, quantization = known, bits
            name = re.sub(rf"-?{mark}", "", name, flags=re.IGNORECASE)
            break
    size = _SIZE.search(name)
    words = ["--model-name", (_SIZE.sub("-", name).strip("-") if size else name).lower()]
    if size:
        words += ["--size-in-billions", size[1].replace(".", "_")]
    return [*words, "--model-format", model_format, "--quantization", quantization]
