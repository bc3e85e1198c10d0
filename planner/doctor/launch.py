"""How the engine of a log was started: the command line, or what vLLM prints of its arguments."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from planner.doctor.log import Log

_COMMAND = re.compile(
    r"^(?:[^'\"`]*?[$#>+] )?\s*(?:CMD |command: )?[`'\"]?((?:(?:export )?[A-Za-z_][A-Za-z0-9_]*=\S+ +)*(?:sudo "
    r"|nohup |env )*"
    r"(?:(?:\S*/)?vllm serve|(?:\S*/)?python[0-9.]* -m vllm\.entrypoints\.\S+|(?:docker|podman|nerdctl) "
    r"run|xinference launch)(?=\s).*)"
)
_VERSIONS = (
    re.compile(r"vLLM API server version v?([0-9]+\.[0-9]+[0-9.]*(?:\.?post\d+)?)"),
    re.compile(r"LLM engine \(v([0-9]+\.[0-9]+[0-9.]*(?:\.?post\d+)?)"),
    re.compile(r"vLLM Version *:? *v?([0-9]+\.[0-9]+[0-9.]*)"),
    re.compile(r"\bvllm==([0-9]+\.[0-9]+[0-9.]*(?:\.?post\d+)?)"),
    re.compile(r"vllm-openai:v([0-9]+\.[0-9]+[0-9.]*)"),
)
_CARD = (
    re.compile(
        r"GPU (?:\d+|models and configuration): (?:GPU \d+: )?((?:NVIDIA|Tesla|GeForce|Quadro) [A-Za-z0-9 "
        r"+-]+?)(?: \(UUID.*)?$",
        re.M,
    ),
    re.compile(r"Your ((?:NVIDIA|Tesla|GeForce|Quadro)[\w +-]+?) GPU has compute capability"),
    re.compile(r"\|\s+\d+\s+((?:NVIDIA|Tesla|GeForce|Quadro) [A-Za-z0-9 +-]+?)\s+(?:On|Off)\s+\|"),
    re.compile(r"backend on\s+((?:NVIDIA|Tesla|GeForce|Quadro)[\w +-]+?) \(compute capability"),
)
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "tensor_parallel_size": (1,), "pipeline_parallel_size": (1,), "data_parallel_size": (1,), "max_model_len": (None,),
    "gpu_memory_utilization": (0.9, 0.92), "max_num_seqs": (None, 256), "max_num_batched_tokens": (None,),
    "kv_cache_dtype": ("auto",), "dtype": ("auto",), "quantization": (None,), "enforce_eager": (False, None),
    "enable_expert_parallel": (False,), "block_size": (None, 16), "limit_mm_per_prompt": (None, {}),
    "mm_processor_kwargs": (None, {}), "trust_remote_code": (False,), "served_model_name": (None,), "port": (8000,),
    "host": (None,),
}  # fmt: skip
_FROM_ENGINE = {"max_seq_len": "max_model_len"}


@dataclass(frozen=True, slots=True)
class LoggedLaunch:
    """`command`: a line that a shell would take, empty where the log has none. `arguments`: by vLLM's names, as far as
    the command or vLLM's own lines tell. `version`, `card`: of the log, None where it does not say."""

    command: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    card: str | None = None


def logged_launch(log: Log) -> LoggedLaunch:
    """The command line in the log, else one made of what vLLM printed."""
    arguments = _printed(log.body)
    command = _written(log.body)
    if not command and arguments.get("model"):
        command = _rebuilt(arguments)
    return LoggedLaunch(command, arguments, _first(_VERSIONS, log.body), _first(_CARD, log.body))


def _first(expressions: tuple[re.Pattern[str], ...], text: str) -> str | None:
    for expression in expressions:
        match = expression.search(text)
        if match:
            return match[1].strip().rstrip(".")
    return None


def _written(body: str) -> str:
    """The last launch line with the lines it continues on. Lines that no shell could read are passed over."""
    found = ""
    for row in re.sub(r"[ \t]*\\[ \t]*\n[ \t]*", " ", body).split("\n"):
        match = _COMMAND.match(row)
        if not match:
            continue
        words = match[1].rstrip("`\\").strip()
        try:
            shlex.split(words)
        except ValueError:
            continue
        found = words
    return found


def _printed(body: str) -> dict[str, Any]:
    for reader in (_non_default, _namespace, _engine_line):
        found = reader(body)
        if found:
            return found
    return {}


def _non_default(body: str) -> dict[str, Any]:
    match = re.search(r"non-default args: (\{.*)", body)
    if not match:
        return {}
    tree = _parsed(match[1][: match[1].rfind("}") + 1])
    if not isinstance(tree, ast.Dict):
        return {}
    pairs = (
        (key.value, _literal(value))
        for key, value in zip(tree.keys, tree.values, strict=True)
        if isinstance(key, ast.Constant)
    )
    return {str(name): value for name, value in pairs if value is not None and name != "model_tag"}


def _namespace(body: str) -> dict[str, Any]:
    match = re.search(r"args: (Namespace\(.*\))", body)
    tree = _parsed(match[1]) if match else None
    if not isinstance(tree, ast.Call):
        return {}
    return _known({str(item.arg): _literal(item.value) for item in tree.keywords})


def _engine_line(body: str) -> dict[str, Any]:
    match = re.search(r"LLM engine(?: \([^)]*\))? with config: (.*)", body)
    if not match:
        return {}
    pairs = re.findall(r"(\w+)=('[^']*'|[^,\s)]+)", match[1])
    return _known({_FROM_ENGINE.get(name, name): _plain(text) for name, text in pairs})


def _plain(text: str) -> Any:
    """`None`, `True`, numbers and quoted texts as values; a bare word such as `torch.float16` or `awq` as its name."""
    value = _literal(_parsed(text))
    return text.rpartition(".")[2] if value is None and text != "None" else value


def _known(values: dict[str, Any]) -> dict[str, Any]:
    found = {"model": values.get("model") or values.get("model_tag")}
    found |= {name: values[name] for name, plain in _DEFAULTS.items() if name in values and values[name] not in plain}
    return {name: value for name, value in found.items() if value is not None}


def _parsed(text: str) -> ast.expr | None:
    text = re.sub(r"<[\w.]+: ('[^']*'|\d+)>", r"\1", text)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _rebuilt(arguments: dict[str, Any]) -> str:
    words = ["vllm", "serve", str(arguments["model"])]
    for name in _DEFAULTS:
        value = arguments.get(name)
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)
