"""The few requests that a verification makes of a server on this machine, past any proxy."""

from __future__ import annotations

import base64
import json
import re
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.errors import OutsideError

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_OUTPUT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One kind of request: `detail` says what was sent, `error` what came back instead of an answer."""

    kind: str
    detail: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Workload:
    """What the requests take from the plan."""

    max_model_len: int
    max_num_seqs: int
    images: int = 0
    image_width: int = 1024
    image_height: int = 1024


def get(url: str, timeout_seconds: float = 5.0) -> tuple[int, str]:
    """Status and body. Raises OSError where nothing answers."""
    try:
        with _OPENER.open(url, timeout=timeout_seconds) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def post(url: str, body: dict[str, Any], timeout_seconds: float) -> tuple[int, str]:
    """Status and body of a JSON request. Raises OSError where nothing answers."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with _OPENER.open(request, timeout=timeout_seconds) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def cache_config(metrics: str) -> dict[str, str]:
    """The labels of `vllm:cache_config_info` in a /metrics text.

    Raises OutsideError where the text has none. Source: vLLM 0.26.0 v1/metrics/loggers.py:1082.
    """
    match = re.search(r"^vllm:cache_config_info\{(.*)\} [0-9.e+]+$", metrics, re.MULTILINE)
    if not match:
        raise OutsideError("/metrics has no vllm:cache_config_info")
    return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[1]))


def send_all(
    base: str, workload: Workload, timeout_seconds: float, progress: Callable[[str], None]
) -> tuple[RequestResult, ...]:
    """One request of each kind: a short one, images, a prompt near max_model_len, max_num_seqs at once.

    Prompts are token ids, so that no tokenizer decides their length.
    """
    model = _served_model(base)
    longest = max(workload.max_model_len - _OUTPUT_TOKENS - 1, 1)
    jobs = [
        ("text", "a prompt of 16 tokens", "/v1/completions", _completion(model, [[7] * 16])),
        ("long", f"a prompt of {longest} tokens", "/v1/completions", _completion(model, [[7] * longest])),
        (
            "concurrent",
            f"{workload.max_num_seqs} prompts of 16 tokens at once",
            "/v1/completions",
            _completion(model, [[7 + index % 90] * 16 for index in range(workload.max_num_seqs)]),
        ),
    ]
    if workload.images:
        size = f"{workload.image_width}x{workload.image_height}"
        jobs.insert(
            1, ("images", f"{workload.images} images of {size}", "/v1/chat/completions", _with_images(model, workload))
        )
    results = []
    for kind, detail, path, body in jobs:
        progress(f"request: {detail}")
        results.append(RequestResult(kind, detail, _error(base + path, body, timeout_seconds)))
    return tuple(results)


def _error(url: str, body: dict[str, Any], timeout_seconds: float) -> str | None:
    try:
        status, text = post(url, body, timeout_seconds)
    except OSError as error:
        return f"no answer: {getattr(error, 'reason', error)}"
    if status != 200:
        return f"status {status}: {' '.join(text.split())[:200]}"
    return None if '"choices"' in text else f"no choices in the answer: {' '.join(text.split())[:200]}"


def _served_model(base: str) -> str:
    try:
        text = get(base + "/v1/models")[1]
        return str(json.loads(text)["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise OutsideError("the server's /v1/models names no model") from None


def _completion(model: str, prompts: list[list[int]]) -> dict[str, Any]:
    return {"model": model, "prompt": prompts, "max_tokens": _OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0}


def _with_images(model: str, workload: Workload) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png(workload.image_width, workload.image_height)).decode()
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for _ in range(workload.images)]
    content.append({"type": "text", "text": "?"})
    return {
        "model": model, "messages": [{"role": "user", "content": content}], "max_tokens": _OUTPUT_TOKENS,
        "ignore_eos": True, "temperature": 0,
    }  # fmt: skip


def png(width: int, height: int) -> bytes:
    """A grey RGB image of the given size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x80" * (3 * width)) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
