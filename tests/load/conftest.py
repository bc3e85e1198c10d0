"""A stand-in OpenAI-compatible server on loopback, with the recorded /metrics of a real vLLM and cards made up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from planner.cli import loadtest
from planner.cli.main import main
from planner.monitor import session as monitor_session
from planner.monitor.sample import CardUse
from tests.loopback import Loopback

METRICS = (Path(__file__).resolve().parent.parent / "data" / "monitor" / "v0_26_0_qwen25_vl_7b.txt").read_bytes()
GIB = 1 << 30


class StandIn(Loopback):
    """A server that streams `max_tokens` tokens to every request, unless `behave` says otherwise.

    `behave`: hang, refuse (status 400), garbage, no json, break (half an answer), error (an event of the stream), fail
    (every other request with 503), redirect, no models.
    """

    def __init__(self) -> None:
        super().__init__()
        self.behave = ""
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.at_once = self.most_at_once = 0
        self.gap_s = 0.001
        self.dies_after: int | None = None
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self.whole(200, METRICS)
                elif stand_in.behave == "redirect":
                    self.whole(307, b"", Location="http://192.0.2.1/v1/models")
                elif stand_in.behave == "no models":
                    self.whole(200, b"<html>")
                else:
                    entries = [{"id": name, "owned_by": "vllm", "max_model_len": 4096} for name in ("m", "n")]
                    self.whole(200, json.dumps({"data": entries}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand_in.lock:
                    stand_in.asked.append((self.path, body, self.headers["Authorization"]))
                    stand_in.at_once += 1
                    stand_in.most_at_once = max(stand_in.most_at_once, stand_in.at_once)
                    number = len(stand_in.asked)
                if number == stand_in.dies_after:
                    stand_in.http.server_close()
                try:
                    self.answer(body, number)
                except OSError:
                    return
                finally:
                    with stand_in.lock:
                        stand_in.at_once -= 1

            def answer(self, body: dict[str, Any], number: int) -> None:
                if stand_in.behave == "hang":
                    stand_in.stopped.wait(30)
                elif stand_in.behave == "refuse":
                    self.whole(400, json.dumps({"error": {"message": "too long\nfor me"}}).encode())
                elif stand_in.behave == "fail" and number % 2:
                    self.whole(503, b"busy")
                elif stand_in.behave == "garbage":
                    self.whole(200, b"\xff\xfe<html>data: nothing</html>\n" * 20)
                elif stand_in.behave == "no json":
                    self.whole(200, b"data: {broken\n\n")
                else:
                    self.events(body)

            def events(self, body: dict[str, Any]) -> None:
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                chat = "messages" in body
                if chat:
                    self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
                for index in range(body["max_tokens"]):
                    stand_in.stopped.wait(stand_in.gap_s)
                    if index == 2 and stand_in.behave == "break":
                        return
                    if index == 2 and stand_in.behave == "error":
                        self.event({"error": {"message": "EngineCore died"}})
                    self.event({"choices": [{"delta": {"content": ""}} if chat else {"text": "x"}]})
                prompt = len(body.get("prompt", "")) or 7
                usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
                self.event({"choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")

            def event(self, document: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
                self.wfile.flush()

            def whole(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.serve(Handler)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


class FakeCards:
    """Two cards of which the first grows look by look, up to `most_bytes`."""

    most_bytes = 21 * GIB

    def __init__(self, only: tuple[int, ...] | None) -> None:
        self.looks = 0

    def look(self) -> tuple[CardUse, ...]:
        self.looks += 1
        used = min(19 * GIB + self.looks * GIB, self.most_bytes)
        return CardUse(index=0, used_bytes=used, total_bytes=24 * GIB), CardUse(index=1, problem="GPU is lost")

    def close(self) -> None:
        pass


@pytest.fixture
def cards(monkeypatch) -> type[FakeCards]:
    """The cards that the monitor sees."""
    monkeypatch.setattr(monitor_session, "Cards", FakeCards)
    return FakeCards


@pytest.fixture
def ran(stand_in, cards, tmp_path, capsys, monkeypatch):
    """One load test of the stand-in in this process: exit code, its JSON, what went to stderr. No picture."""
    monkeypatch.setattr(loadtest, "_drawn", lambda csv: "not drawn")

    def run(*arguments: str, name: str = "load.csv"):
        code = main(
            ["loadtest", "--url", stand_in.url, "--csv", str(tmp_path / name), "--interval", "0.1", "--format", "json",
             "--grace", "1", *arguments]
        )  # fmt: skip
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else None, printed.err

    return run
