"""What the monitor leaves: rows in a file, lines and a view on the terminal, gauges and a dashboard."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.errors import InputError
from planner.monitor import csv_log
from planner.monitor.csv_log import COLUMNS, CsvLog
from planner.monitor.exporter import dashboard
from planner.monitor.planned import Planned, read_plan
from planner.monitor.sample import CardUse, Sample, ServerLook
from planner.monitor.watch import Watch

GIB = 1 << 30


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_survive_rotation_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    log = CsvLog(path)
    sample = Sample(time=1.0, server=ServerLook(running=2.0), cards=(CardUse(index=0, used_bytes=5), CardUse(index=1)))
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
    sample = Sample(time=1.0, server=ServerLook())
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


def test_a_killed_monitor_loses_no_written_row(tmp_path: Path, stand_in: Any) -> None:
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


def test_it_goes_on_whatever_the_server_and_the_disk_do(
    ran, stand_in: Any, recorded: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = recorded("v0_26_0_qwen25_vl_7b.txt").encode()
    stand_in.script = [
        (200, good, 0.0), (200, b"\xff<html>", 0.0), (503, b"", 0.0), (200, good, 0.6), (200, b"", 0.0),
        (200, good, 0.0), (200, good, 0.0), (200, good, 0.0),
    ]  # fmt: skip
    append, calls = CsvLog.append, []

    def full_once(log: CsvLog, sample: Sample) -> str | None:
        calls.append(sample)
        return "--csv: No space left on device" if len(calls) == 7 else append(log, sample)

    monkeypatch.setattr(CsvLog, "append", full_once)
    path = tmp_path / "m.csv"
    code, out, err = ran(
        "--url", stand_in.url, "--csv", str(path), "--interval", "0.1", "--timeout", "0.3", "--duration", "2.5"
    )  # fmt: skip
    assert (code, err) == (0, "")
    lines = [line.split(" ", 1)[1] for line in out.splitlines()]
    assert lines[0] == "all is well"
    told = iter(lines)
    for words in (
        "Prometheus",
        "answers 503",
        "no answer",
        "no vLLM metric",
        "all is well",
        "No space left",
        "all is well",
    ):
        assert any(words in line for line in told), (words, lines)
    assert len(rows(path)) == len(calls) - 1


@pytest.mark.parametrize("package", ["httpx", "prometheus_client"])
def test_a_missing_package_is_named(ran, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = ran("--once")
    assert code == 4
    assert err.count("\n") == 1
    assert "vplan[monitor]" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_no_file_to_append_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        CsvLog(Path("/dev/full"))
    with pytest.raises(InputError, match="not a file"):
        CsvLog(tmp_path)


ESTIMATE = {
    "schema": "vplan.estimate/1", "model": "m", "kv_cache": {"capacity_tokens": 1000},
    "per_gpu": {
        "used_after_startup_bytes": 20 * GIB, "used_after_startup_bytes_interval": [19 * GIB, 21 * GIB],
        "vision_encoder_runtime_peak_bytes": GIB, "total_memory_bytes": 24 * GIB,
    },
}  # fmt: skip


def test_once_as_json_with_a_plan(ran, stand_in: Any, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
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


def test_once_without_a_server_is_code_4(ran, stand_in: Any) -> None:  # type: ignore[no-untyped-def]
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


def test_prometheus_shows_plan_and_actual(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: Planned
) -> None:
    from contextlib import ExitStack

    from planner.monitor.session import Session

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        session = Session(stack, stand_in.url, 1.0, planned, None, port)
        monkeypatch.setattr(
            session, "_cards", SimpleNamespace(look=lambda: (CardUse(index=0, used_bytes=7, total_bytes=9 * GIB),))
        )
        session.look()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    assert 'vplan_gpu_used_bytes{gpu="0"} 7.0' in text
    planned_bytes = next(line for line in text.splitlines() if line.startswith('vplan_gpu_planned_bytes{gpu="0"} '))
    assert float(planned_bytes.split()[1]) == 20 * GIB
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


def test_the_live_view_says_what_the_plan_says(planned: Planned) -> None:
    from io import StringIO

    from planner.cli.monitor_view import view
    from planner.report.text import console_for

    planned = planned.model_copy(update={"lines": (("weights", 15 * GIB), ("KV cache", 5 * GIB))})
    cards = (
        CardUse(index=0, used_bytes=21 * GIB, total_bytes=24 * GIB, utilization_percent=97, processes=((7, 20 * GIB),)),
        CardUse(index=1, problem="GPU is lost"),
    )
    watch = Watch(planned)
    watch.sample(0.0, ServerLook(generation_tokens=0.0), ())
    sample = watch.sample(2.0, ServerLook(generation_tokens=2468.0, running=3.0, kv_cache_usage=0.5, model="m"), cards)
    buffer = StringIO()
    console_for(buffer, color=False, width=160).print(view(sample, planned, "http://h/metrics"))
    shown = buffer.getvalue()
    for words in (
        "1,234 generated", "3 running", "50.0% in use, about 500 of 1,000 tokens",
        "21.00 GiB (plan 19.00 GiB to 21.00 GiB)",
        "weights 15.00 + KV cache 5.00 = 20.00 GiB, at most 22.00 GiB",
        "process 7: 20.00 GiB", "GPU 1: GPU is lost", "! GPU 1: GPU is lost", "serving",
    ):  # fmt: skip
        assert words in shown, shown
