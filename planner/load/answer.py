"""A streamed answer, piece by piece: when tokens came, how many, and what went wrong."""

from __future__ import annotations

import json
from typing import Any

_MAX_BYTES = 64 << 20
_MAX_LINE_BYTES = 4 << 20


class Broken(Exception):
    """The server's answer is not one that could be counted; the words say why."""


class Answer:
    """Fed with bytes as they arrive (server-sent events) and the time they came, in seconds."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.longest_gap_s: float | None = None
        self.prompt_tokens: int | None = None
        self.done = False
        self._told: int | None = None
        self._events = 0
        self._bytes = 0
        self._rest = b""

    @property
    def completion_tokens(self) -> int:
        """As the server counted them, or else the events that carried some."""
        return self._events if self._told is None else self._told

    @property
    def mean_gap_s(self) -> float | None:
        """Time between tokens: from the first to the last, over the tokens after the first."""
        if self.first_s is None or self.last_s is None or self.completion_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.completion_tokens - 1)

    def feed(self, data: bytes, now_s: float) -> None:
        """Raises Broken for what is no event stream, an error event, or more than 64 MiB."""
        self._bytes += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._bytes > _MAX_BYTES or len(self._rest) > _MAX_LINE_BYTES:
            raise Broken(f"the answer is longer than {_MAX_BYTES >> 20} MiB")
        for line in lines:
            if line.startswith(b"data:") and not self.done:
                self._event(line[5:].strip(), now_s)

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
            if event.get("error"):
                raise Broken(f"error in the stream: {_words(event['error'])}")
            if any(_has_token(choice) for choice in event.get("choices") or ()):
                self._token(now_s)
            if event.get("usage"):
                self._told = int(event["usage"]["completion_tokens"])
                self.prompt_tokens = int(event["usage"]["prompt_tokens"])
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise Broken(f"no event of a completion: {data[:80].decode('utf-8', 'replace')}") from None

    def _token(self, now_s: float) -> None:
        self._events += 1
        if self.first_s is None:
            self.first_s = now_s
        if self.last_s is not None:
            self.longest_gap_s = max(self.longest_gap_s or 0.0, now_s - self.last_s)
        self.last_s = now_s


def _has_token(choice: dict[str, Any]) -> bool:
    """Not the event that only opens a chat message. A token's text may be empty: half a character."""
    delta = choice.get("delta")
    return delta is None or not ("role" in delta and not delta.get("content"))


def error_words(status: int, body: bytes) -> str:
    """What a refusal says, in one line."""
    try:
        document = json.loads(body)
        words = _words(document.get("error", document))
    except (ValueError, AttributeError, RecursionError):
        words = body.decode("utf-8", "replace")
    return f"status {status}: {' '.join(words.split())}"[:300]


def _words(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
