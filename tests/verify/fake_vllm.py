#!/usr/bin/env python3
"""A stand-in for the `vllm` executable: replays a recorded log, then serves, fails, hangs, crashes or talks nonsense.

FAKE_VLLM_MODE and FAKE_VLLM_LOG say how. Like the real one it has a worker in a process of its own; in the nasty modes
that worker sits in its own session and shrugs off every signal but SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_VLLM_MODE", "serve")
STUBBORN = "import signal, time\nfor n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\ntime.sleep(600)"
PLAIN = "import time; time.sleep(600)"
METRICS = """# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="988681"} 1.0
"""


class Server(BaseHTTPRequestHandler):
    """The five addresses that a verification asks."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, text: str, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer("")
        elif self.path == "/metrics":
            self.answer(METRICS)
        elif self.path == "/v1/models":
            self.answer(json.dumps({"data": [{"id": sys.argv[2]}]}))
        else:
            self.answer("?", 404)

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(os.environ["FAKE_VLLM_SENT"], "a", encoding="utf-8") as file:
            prompts = sent.get("prompt", [])
            images = [c for m in sent.get("messages", []) for c in m["content"] if c["type"] == "image_url"]
            record = {"path": self.path, "prompts": len(prompts), "longest": max(map(len, prompts), default=0)}
            file.write(json.dumps(record | {"images": len(images)}) + "\n")
        if MODE == "dies-on-request":
            os._exit(9)
        self.answer(json.dumps({"choices": [{"text": "x"}]}))


def main() -> int:
    if sys.argv[1] != "serve":
        print("fake: only serve", file=sys.stderr)
        return 2
    stubborn = MODE in ("hang", "crash")
    worker = subprocess.Popen([sys.executable, "-c", STUBBORN if stubborn else PLAIN], start_new_session=stubborn)
    Path(os.environ["FAKE_VLLM_PIDS"]).write_text(f"{os.getpid()} {worker.pid}")
    lines = Path(os.environ["FAKE_VLLM_LOG"]).read_text(encoding="utf-8").splitlines()
    for line in lines[: 8 if MODE == "hang" else None]:
        print(line, flush=True)
    if MODE == "fail":
        worker.kill()
        return 1
    if MODE == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if MODE == "hang":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    if MODE == "garbage":
        sys.stdout.buffer.write(bytes(range(256)) * 64)
        sys.stdout.flush()

    def leave(*_: object) -> None:
        worker.kill()
        os._exit(0)

    signal.signal(signal.SIGINT, leave)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Server).serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
