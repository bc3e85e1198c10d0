"""A headless Chromium for tests, driven over its debugging pipe: what a page asks for, complains of and looks like."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 60


def installed() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Seen:
    """What happened while a page was open. `requests`: addresses that it asked for, the page itself first."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    screenshot: bytes = b""
    scroll_width: int = 0
    broken_images: int = 0


class Browser:
    """One tab. Commands go to the browser's file descriptor 3, answers and events come from 4, NUL between them."""

    def __init__(self, process: subprocess.Popen[bytes], out: int, back: int) -> None:
        self._process, self._out, self._back = process, out, back
        self._buffer, self._number, self._events = b"", 0, []
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = ""
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def visit(self, page: Path, *, width: int = 1000, height: int = 1400, dark: bool = False) -> Seen:
        """Open a file in a window of this size; the screenshot is of the whole page."""
        self._events = []
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._ask("Page.navigate", {"url": page.as_uri()})
        self._until(lambda event: event.get("method") == "Page.loadEventFired")
        seen = Seen(
            scroll_width=self._value("document.documentElement.scrollWidth"),
            broken_images=self._value("[...document.images].filter(i => !i.complete || !i.naturalWidth).length"),
            screenshot=base64.b64decode(self._ask("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]),
        )
        for event in self._events:
            about = event.get("params", {})
            if event["method"] == "Network.requestWillBeSent":
                seen.requests.append(about["request"]["url"])
            elif event["method"] == "Runtime.exceptionThrown":
                seen.errors.append(about["exceptionDetails"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert", "warning"):
                seen.errors.append(str([argument.get("value") for argument in about["args"]]))
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                seen.errors.append(about["entry"]["text"])
        return seen

    def _value(self, expression: str) -> Any:
        return self._ask("Runtime.evaluate", {"expression": expression, "returnByValue": True})["result"]["value"]

    def _ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda event: event.get("id") == number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _until(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + _SECONDS
        while True:
            while b"\0" in self._buffer:
                one, _, self._buffer = self._buffer.partition(b"\0")
                event = json.loads(one)
                if wanted(event):
                    return event
                if "method" in event:
                    self._events.append(event)
            ready, _, _ = select.select([self._back], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser is silent"
            part = os.read(self._back, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`, ended afterwards."""
    program = installed()
    assert program is not None
    child_in, out = os.pipe()
    back, child_out = os.pipe()

    def place() -> None:
        low = os.dup(child_in), os.dup(child_out)
        os.dup2(low[0], 3)
        os.dup2(low[1], 4)

    process = subprocess.Popen(
        [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
            f"--user-data-dir={folder}", "--remote-debugging-pipe",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=place, close_fds=False,
    )  # fmt: skip
    os.close(child_in)
    os.close(child_out)
    try:
        yield Browser(process, out, back)
    finally:
        os.close(out)
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(back)
