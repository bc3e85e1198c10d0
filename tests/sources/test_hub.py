"""Hugging Face and ModelScope, played by a server on this machine: what is fetched, and how failures read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from planner.errors import InputError, OutsideError
from planner.sources import hub
from planner.sources.load import load_model

ROOT = Path(__file__).resolve().parent.parent.parent
PATH = re.compile(r"(?:/models)?/(?P<repository>[\w.-]+/[\w.-]+)/resolve/\w+/(?P<file>[\w.-]+)(?:\?.*)?")
AWQ = {"quant_method": "awq", "bits": 4}
HEADER = json.dumps({"a.qweight": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}).encode()


class Hub(ThreadingHTTPServer):
    """Files by "owner/name/file"; `requested` keeps what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requested: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        match = PATH.fullmatch(self.path)
        self.server.requested.append(self.path)
        if match and match["repository"] == "owner/moved":
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/elsewhere")
            self.end_headers()
            return
        name = f"{match['repository']}/{match['file']}" if match else ""
        content = self.server.files.get(name)
        known = any(key.rpartition("/")[0] == name.rpartition("/")[0] for key in self.server.files)
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            content = b""
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def load_in_a_fresh_process(server: Hub, home: Path, reference: str) -> subprocess.CompletedProcess[str]:
    """huggingface_hub reads HF_ENDPOINT once, at import: so a process of its own."""
    code = (
        "import sys, msgspec; from planner.errors import PlannerError; from planner.sources.load import load_model\n"
        "try: print(msgspec.json.encode(load_model(sys.argv[1])).decode())\n"
        "except PlannerError as error: print(error); sys.exit(error.exit_code)"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", code, reference]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_hugging_face_files_and_headers(server: Hub, tmp_path: Path) -> None:
    server.files = {
        "owner/model/config.json": json.dumps({"architectures": ["X"], "quantization_config": AWQ}).encode(),
        "owner/model/preprocessor_config.json": b'{"patch_size": 14}',
        "owner/model/model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER,
    }
    result = load_in_a_fresh_process(server, tmp_path, "owner/model")
    assert result.returncode == 0, result.stderr
    files = json.loads(result.stdout)
    assert files["config"]["quantization_config"] == AWQ
    assert files["preprocessor"] == {"patch_size": 14}
    assert files["quantized_modules"] == ["a"]
    assert files["checkpoint_bytes"] == 8


def test_hugging_face_without_such_a_repository(server: Hub, tmp_path: Path) -> None:
    result = load_in_a_fresh_process(server, tmp_path, "Qwen/Qwen3-88B")
    assert result.returncode == 2
    assert "no such repository" in result.stdout
    assert "did you mean Qwen/Qwen3-8B" in result.stdout
    assert result.stdout.count("\n") == 1


def test_modelscope_files(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MODELSCOPE", server.url)
    server.files = {
        "owner/model/config.json": b'{"architectures": ["X"]}',
        "owner/model/model.safetensors.index.json": b'{"metadata": {"total_size": 77}}',
    }
    files = load_model("owner/model", source="modelscope")
    assert (files.config, files.checkpoint_bytes) == ({"architectures": ["X"]}, 77)
    assert not any(path.endswith((".safetensors", ".bin", ".py")) for path in server.requested)


def test_modelscope_failures(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MODELSCOPE", server.url)
    with pytest.raises(InputError, match="no such repository"):
        load_model("owner/none", source="modelscope")
    with pytest.raises(OutsideError, match="not https"):
        load_model("owner/moved", source="modelscope")
    server.files = {"owner/bad/config.json": b"[]"}
    with pytest.raises(InputError, match="found a list"):
        load_model("owner/bad", source="modelscope")
    monkeypatch.setattr(hub, "MODELSCOPE", "http://127.0.0.1:9")
    with pytest.raises(OutsideError, match="127"):
        load_model("owner/none", source="modelscope")
