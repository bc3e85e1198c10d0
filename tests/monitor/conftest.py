"""A stand-in for a server on loopback that answers recorded metrics, garbage, slowly, or not at all; and a plan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from planner.cli.main import main
from planner.monitor.planned import Planned
from planner.monitor.scrape import Server
from tests.loopback import Loopback

DATA = Path(__file__).resolve().parent.parent / "data" / "monitor"
GIB = 1 << 30


def _recorded(name: str) -> str:
    return (DATA / name).read_text()


@pytest.fixture
def recorded() -> Callable[[str], str]:
    """The text of a recorded answer."""
    return _recorded


class StandIn(Loopback):
    """A server whose next answers are set by the test: `body`, `status`, `pause` before and `drip` between bytes.

    `script`: (status, body, pause) of the answers to come, one after the other, before those.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body, self.status, self.pause, self.drip = _recorded("v1_qwen3_0.6b.txt").encode(), 200, 0.0, 0.0
        self.script: list[tuple[int, bytes, float]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if stand_in.script:
                    stand_in.status, stand_in.body, stand_in.pause = stand_in.script.pop(0)
                stand_in.stopped.wait(stand_in.pause)
                self.send_response(stand_in.status)
                self.send_header("Content-Length", str(len(stand_in.body)))
                self.end_headers()
                step = 1 if stand_in.drip else max(1, len(stand_in.body))
                for at in range(0, len(stand_in.body), step):
                    if stand_in.stopped.wait(stand_in.drip):
                        return
                    try:
                        self.wfile.write(stand_in.body[at : at + step])
                    except OSError:
                        return

            def log_message(self, *_: object) -> None:
                pass

        self.serve(Handler)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@pytest.fixture
def server(stand_in: StandIn) -> Iterator[Server]:
    asked = Server(stand_in.url, timeout_s=0.4)
    yield asked
    asked.close()


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["monitor", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def planned() -> Planned:
    return Planned(
        model="m", used_bytes=20 * GIB, used_interval=(19 * GIB, 21 * GIB), peak_bytes=22 * GIB, total_bytes=24 * GIB,
        capacity_tokens=1000,
    )  # fmt: skip
