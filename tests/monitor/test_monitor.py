"""The monitor against a stand-in server on loopback that answers recorded metrics, garbage, slowly, or not at all."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from planner.cli.main import main
from planner.errors import InputError, OutsideError
from planner.monitor import csv_log
from planner.monitor.cards import Cards, parse_cards
from planner.monitor.csv_log import COLUMNS, CsvLog
from planner.monitor.exporter import dashboard
from planner.monitor.metrics import read_metrics
from planner.monitor.planned import Planned, read_plan
from planner.monitor.sample import CardUse, Sample, ServerLook
from planner.monitor.scrape import Server, metrics_url
from planner.monitor.watch import Watch

DATA = Path(__file__).resolve().parent.parent / "data" / "monitor"
GIB = 1 << 30


def recorded(name: str) -> str:
    return (DATA / name).read_text()


class StandIn:
    """A server whose next answers are set by the test: `body`, `status`, `pause` before and `drip` between bytes."""

    def __init__(self) -> None:
        self.body, self.status, self.pause, self.drip = recorded("v1_qwen3_0.6b.txt").encode(), 200, 0.0, 0.0
        self.stopped = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
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

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


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


def test_recorded_metrics_of_three_releases() -> None:
    look = read_metrics(recorded("v1_qwen3_0.6b.txt"))
    assert (look.model, look.prompt_tokens, look.generation_tokens) == ("Qwen/Qwen3-0.6B", 80.0, 500.0)
    assert (look.running, look.waiting, look.kv_cache_usage, look.requests_finished) == (0.0, 0.0, 0.0, 10.0)
    assert (look.preemptions, look.mm_cache_hits, look.started_at) == (None, None, None)
    look = read_metrics(recorded("v1_glm45.txt"))
    assert (look.kv_cache_usage, look.prefix_cache_queries) == (9.75010481363281e-06, 32.0)
    look = read_metrics(recorded("v0_qwen25_coder.txt"))
    assert (look.kv_cache_usage, look.started_at) == (0.0, 1.74262400557e09)


def test_the_whole_answer_of_a_release_under_load() -> None:
    look = read_metrics(recorded("v0_26_0_qwen25_vl_7b.txt"))
    assert (look.model, look.running, look.waiting, look.preemptions) == ("qwen2.5-vl-7b-dummy", 64.0, 32.0, 0.0)
    assert (look.prompt_tokens, look.generation_tokens, look.kv_cache_usage) == (450182.0, 44646.0, 0.5327759832794984)
    assert (look.mm_cache_queries, look.mm_cache_hits, look.kv_cache_blocks) == (148.0, 0.0, 21053)
    assert None not in look.model_dump(exclude={"problem"}).values()


def test_engines_are_summed_and_the_fullest_cache_counts() -> None:
    look = read_metrics(
        'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 5\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n'
        'vllm:num_requests_waiting{engine="0"} NaN\nvllm:cache_config_info{num_gpu_blocks="123"} 1\n'
    )
    assert (look.running, look.kv_cache_usage, look.waiting, look.kv_cache_blocks) == (8, 0.4, None, 123)


@pytest.mark.parametrize(
    "text", ["", "<html>hello</html>", "{}", "vllm:x{", "\x00\x01", "python_info 1.0\n", "a" * 100_000]
)
def test_garbage_is_told(text: str) -> None:
    with pytest.raises(OutsideError):
        read_metrics(text)


def test_a_server_that_hangs_drips_fails_and_comes_back(stand_in: StandIn, server: Server) -> None:
    assert server.look().problem is None
    stand_in.pause = 30
    began = time.monotonic()
    assert "no answer" in (server.look().problem or "")
    assert time.monotonic() - began < 2
    stand_in.pause, stand_in.drip = 0.0, 0.05
    assert "did not finish" in (server.look().problem or "")
    stand_in.drip, stand_in.status = 0.0, 503
    assert "answers 503" in (server.look().problem or "")
    stand_in.status, stand_in.body = 200, b"\xff\xfe<html>"
    assert server.look().problem is not None
    stand_in.body = recorded("v1_glm45.txt").encode()
    assert server.look().problem is None


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    asked = Server(url, timeout_s=0.4)
    assert "no answer" in (asked.look().problem or "")
    asked.close()


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:99999", "http://h:x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="--url"):
        metrics_url(url)


def test_addresses() -> None:
    assert metrics_url("localhost:8000") == "http://localhost:8000/metrics"
    assert metrics_url("http://h:1/v1/") == "http://h:1/metrics"
    assert metrics_url("https://h/metrics") == "https://h/metrics"


PLANNED = Planned(
    model="m", used_bytes=20 * GIB, used_interval=(19 * GIB, 21 * GIB), peak_bytes=22 * GIB, total_bytes=24 * GIB,
    capacity_tokens=1000,
)  # fmt: skip


def look(**values: float | str) -> ServerLook:
    return ServerLook(**{"prompt_tokens": 0.0, "generation_tokens": 0.0, **values})  # type: ignore[arg-type]


def test_rates_and_a_restart() -> None:
    watch = Watch()
    assert watch.sample(0.0, look(), ()).generation_tokens_per_s is None
    sample = watch.sample(2.0, look(generation_tokens=100.0, prompt_tokens=10.0), ())
    assert (sample.generation_tokens_per_s, sample.prompt_tokens_per_s) == (50.0, 5.0)
    watch.sample(4.0, ServerLook(problem="down"), ())
    sample = watch.sample(6.0, look(generation_tokens=300.0), ())
    assert sample.restarted
    sample = watch.sample(8.0, look(generation_tokens=310.0), ())
    assert (sample.restarted, sample.generation_tokens_per_s) == (False, 5.0)
    assert not Watch().sample(0.0, look(started_at=1.0), ()).restarted
    watch.sample(10.0, look(generation_tokens=320.0, started_at=1.0), ())
    assert watch.sample(12.0, look(generation_tokens=330.0, started_at=2.0), ()).restarted


def test_warnings_come_before_trouble() -> None:
    watch = Watch(PLANNED)
    rising = [watch.sample(float(n), look(waiting=float(n)), ()).warnings for n in range(5)]
    assert rising[2] == ()
    assert "queue grows" in rising[4][0]
    full = watch.sample(9.0, look(waiting=2.0, kv_cache_usage=0.95), ())
    assert "95% full" in full.warnings[0]
    watch.sample(10.0, look(preemptions=1.0), ())
    assert "4 requests were preempted" in watch.sample(11.0, look(preemptions=5.0), ()).warnings[0]
    above = watch.sample(12.0, look(), (CardUse(index=1, used_bytes=23 * GIB, total_bytes=24 * GIB),))
    assert above.warnings == ("GPU 1: 23.00 GiB in use, the plan has 22.00 GiB at most",)
    near = Watch().sample(0.0, look(), (CardUse(index=0, used_bytes=24 * GIB - 1, total_bytes=24 * GIB),))
    assert "free" in near.warnings[0]
    assert (
        Watch(PLANNED).sample(0.0, look(), (CardUse(index=0, used_bytes=21 * GIB, total_bytes=24 * GIB),)).warnings
        == ()
    )


def test_a_card_that_falls_off_is_told_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class NvmlError(Exception):
        pass

    lost = {1}

    def memory(index: int) -> SimpleNamespace:
        if index in lost:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(used=5, total=10)

    def unsupported(index: int) -> None:
        raise NvmlError("Not Supported")

    module = ModuleType("pynvml")
    for name, value in {
        "NVMLError": NvmlError, "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index, "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetUtilizationRates": unsupported,
        "nvmlDeviceGetComputeRunningProcesses": lambda index: [SimpleNamespace(pid=7, usedGpuMemory=None)],
    }.items():  # fmt: skip
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    cards = Cards()
    first, second = cards.look()
    assert (first.used_bytes, first.processes, first.utilization_percent) == (5, ((7, None),), None)
    assert second.problem == "GPU is lost"
    lost.clear()
    assert cards.look()[1].used_bytes == 5
    cards.close()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Cards().look() == ()


def test_only_the_cards_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parse_cards(None) is None
    assert parse_cards("2, 0") == (0, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert parse_cards(None) == (1, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2c")
    assert parse_cards(None) is None
    with pytest.raises(InputError, match="--cards"):
        parse_cards("all")
    module = ModuleType("pynvml")
    for name, value in {
        "NVMLError": RuntimeError, "nvmlInit": lambda: None, "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 4, "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(used=index, total=10),
        "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=1),
        "nvmlDeviceGetComputeRunningProcesses": lambda index: [],
    }.items():  # fmt: skip
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert [(card.index, card.used_bytes) for card in Cards((1, 3)).look()] == [(1, 1), (3, 3)]


def test_what_the_driver_keeps_is_not_held_against_a_plan() -> None:
    """An idle H200 as NVML shows it: 615 MiB in use, which is its total less CUDA's."""
    planned = PLANNED.model_copy(update={"total_bytes": 150_109_880_320, "peak_bytes": GIB})
    idle = CardUse(index=0, used_bytes=644_939_776, total_bytes=150_754_820_096)
    assert planned.held_bytes(idle) == 0
    full = idle.model_copy(update={"used_bytes": 644_939_776 + GIB})
    assert Watch(planned).sample(0.0, look(), (full,)).warnings == ()
    over = full.model_copy(update={"used_bytes": 644_939_776 + GIB + 1})
    assert "at most" in Watch(planned).sample(0.0, look(), (over,)).warnings[0]
    assert planned.model_copy(update={"total_bytes": 44 * GIB}).reserved_bytes(150_754_820_096) == 0
    assert planned.held_bytes(CardUse(index=0)) is None


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_survive_rotation_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    log = CsvLog(path)
    sample = Sample(time=1.0, server=look(running=2.0), cards=(CardUse(index=0, used_bytes=5), CardUse(index=1)))
    assert log.append(sample) is None
    path.rename(tmp_path / "m.csv.1")
    assert log.append(sample.model_copy(update={"warnings": ("a, b\nc",)})) is None
    with path.open("a") as file:
        file.write("2.0,torn")
    assert log.append(sample) is None
    found = rows(path)
    assert len(rows(tmp_path / "m.csv.1")) == 1
    assert (found[0]["warnings"], found[0]["gpu_used_bytes"]) == ("a, b c", "5 -")
    assert [row["time"] for row in found] == ["1.000", "2.0", "1.000"]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_loses_the_row_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    path = tmp_path / "m.csv"
    log = CsvLog(path)
    sample = Sample(time=1.0, server=look())
    log.append(sample)
    before = path.read_bytes()
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if written:
            return real(descriptor, data[:written])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv_log.os, "write", full)
    assert "No space left on device" in (log.append(sample) or "")
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert log.append(sample) is None
    assert len(rows(path)) == 2


def test_another_file_is_not_spoilt(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other columns"):
        CsvLog(path)
    with pytest.raises(InputError, match="--csv"):
        CsvLog(tmp_path / "none" / "m.csv")


def test_a_killed_monitor_loses_no_written_row(tmp_path: Path, stand_in: StandIn) -> None:
    path = tmp_path / "m.csv"
    command = [
        sys.executable,
        "-m",
        "planner",
        "monitor",
        "--url",
        stand_in.url,
        "--interval",
        "0.1",
        "--format",
        "json",
    ]
    with subprocess.Popen([*command, "--csv", str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = rows(path)
    assert len(found) >= 3
    assert [row["time"] for row in found[:3]] == [f"{sample['time']:.3f}" for sample in printed]
    assert all(None not in row.values() for row in found)


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["monitor", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


ESTIMATE = {
    "schema": "vplan.estimate/1", "model": "m", "kv_cache": {"capacity_tokens": 1000},
    "per_gpu": {
        "used_after_startup_bytes": 20 * GIB, "used_after_startup_bytes_interval": [19 * GIB, 21 * GIB],
        "vision_encoder_runtime_peak_bytes": GIB, "total_memory_bytes": 24 * GIB,
    },
}  # fmt: skip


def test_once_as_json_with_a_plan(ran, stand_in: StandIn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"schema": "vplan.fit/1", "plans": [{"rank": 2, "estimate": ESTIMATE}]}))
    code, out, err = ran("--url", stand_in.url, "--plan", str(plan), "--rank", "2", "--once", "--format", "json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["schema"] == "vplan.monitor/1"
    assert answer["server"]["generation_tokens"] == 500.0
    assert answer["plan"]["peak_bytes"] == 22 * GIB
    code, out, _ = ran("--url", stand_in.url, "--plan", str(plan), "--rank", "2", "--once")
    assert "0.0% in use, about 0 of 1,000 tokens" in out


def test_once_without_a_server_is_code_4(ran, stand_in: StandIn) -> None:  # type: ignore[no-untyped-def]
    stand_in.status = 500
    code, out, err = ran("--url", stand_in.url, "--once", "--format", "json")
    assert (code, err) == (4, "")
    assert "answers 500" in json.loads(out)["server"]["problem"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--interval", "0"), 2), (("--timeout", "-1"), 2), (("--url", "ftp://x"), 2), (("--plan", "/dev/null/x"), 2),
        (("--csv", "/dev/null/x"), 2), (("--format", "xml"), 2),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(ran, arguments: tuple[str, ...], code: int) -> None:  # type: ignore[no-untyped-def]
    found, _, err = ran(*arguments)
    assert found == code
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "vplan.estimate/1", "per_gpu": null}', '{"schema": "vplan.fit/1", "plans": []}'],
)
def test_a_plan_that_is_none(tmp_path: Path, text: str) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(text)
    with pytest.raises(InputError, match="--plan"):
        read_plan(plan)


def test_prometheus_shows_plan_and_actual(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import ExitStack

    from planner.monitor.session import Session

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        session = Session(stack, stand_in.url, 1.0, PLANNED, None, port)
        monkeypatch.setattr(
            session, "_cards", SimpleNamespace(look=lambda: (CardUse(index=0, used_bytes=7, total_bytes=9 * GIB),))
        )
        session.look()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    assert 'vplan_gpu_used_bytes{gpu="0"} 7.0' in text
    assert 'vplan_gpu_planned_bytes{gpu="0"} 2.147483648e+10' in text
    assert "vplan_server_up 1.0" in text


def test_the_dashboard_draws_only_gauges_that_are_exported(ran) -> None:  # type: ignore[no-untyped-def]
    from planner.monitor import exporter

    names = {name for name, _ in (*exporter._GAUGES, *exporter._CARD_GAUGES)}
    code, out, _ = ran("--grafana")
    assert code == 0
    document = json.loads(out)
    assert out.strip() == dashboard()
    drawn = {
        word
        for panel in document["panels"]
        for target in panel["targets"]
        for word in target["expr"].split()
        if "vplan" in word
    }
    assert drawn == names


def test_the_live_view_says_what_the_plan_says() -> None:
    from io import StringIO

    from planner.cli.monitor_view import view
    from planner.report.text import console_for

    cards = (
        CardUse(index=0, used_bytes=21 * GIB, total_bytes=24 * GIB, utilization_percent=97, processes=((7, 20 * GIB),)),
        CardUse(index=1, problem="GPU is lost"),
    )
    watch = Watch(PLANNED)
    watch.sample(0.0, look(), ())
    sample = watch.sample(2.0, look(generation_tokens=2468.0, running=3.0, kv_cache_usage=0.5, model="m"), cards)
    buffer = StringIO()
    console_for(buffer, color=False, width=160).print(view(sample, PLANNED, "http://h/metrics"))
    shown = buffer.getvalue()
    for words in (
        "1,234 generated", "3 running", "50.0% in use, about 500 of 1,000 tokens",
        "21.00 GiB (plan 19.00 GiB to 21.00 GiB)",
        "process 7: 20.00 GiB", "GPU 1: GPU is lost", "! GPU 1: GPU is lost", "serving",
    ):  # fmt: skip
        assert words in shown, shown
