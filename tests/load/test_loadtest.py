"""The load test end to end, against a stand-in OpenAI-compatible server that answers well, badly, or not at all."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from planner.cli.main import main
from planner.errors import InputError
from planner.load.rows import read_rows
from planner.load.run import draw

GIB = 1 << 30


@pytest.fixture
def plan(tmp_path: Path) -> str:
    gpu = {
        "used_after_startup_bytes": 20 * GIB, "used_after_startup_bytes_interval": [19 * GIB, 21 * GIB],
        "vision_encoder_runtime_peak_bytes": GIB, "total_memory_bytes": 24 * GIB,
    }  # fmt: skip
    estimate = {"schema": "vplan.estimate/1", "model": "m", "per_gpu": gpu, "kv_cache": {"capacity_tokens": 1000}}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(estimate))
    return str(file)


def test_a_mixed_test_leaves_rows_looks_and_a_summary(ran, stand_in, plan, tmp_path):
    code, answer, err = ran(
        "--mix", "text=2,image=1,video=1", "--text-tokens", "10-40", "--output-tokens", "5", "--image-size", "64x48",
        "--video-size", "32x32", "--video-frames", "3", "--requests", "24", "--concurrency", "4", "--plan", plan,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert answer["requests"] | {"problems": None} == {
        "sent": 24, "answered": 24, "failed": 0, "cancelled": 0, "problems": None, "left_out": 0, "rows_lost": 0,
    }  # fmt: skip
    rows = read_rows(tmp_path / "load.csv")
    assert sorted(row.number for row in rows) == list(range(24))
    assert {row.kind for row in rows} == {"text", "image", "video"} == set(answer["latency"])
    for row in rows:
        assert (row.completion_tokens, row.status) == (5, "ok")
        assert row.prompt_tokens == (row.text_tokens if row.kind == "text" else 7)
        assert 0 < row.ttft_s < row.duration_s
        assert row.itl_mean_s <= row.itl_max_s
    assert stand_in.most_at_once <= 4
    assert Counter(path for path, _, _ in stand_in.asked)["/v1/completions"] == sum(row.kind == "text" for row in rows)
    memory = answer["memory"]
    assert memory["cards"] == [
        {"gpu": 0, "before_bytes": 20 * GIB, "peak_bytes": 21 * GIB, "total_bytes": 24 * GIB, "reserved_bytes": 0}
    ]
    assert (memory["plan"]["peak_bytes"], memory["within_plan"]) == (22 * GIB, True)
    assert any("GPU is lost" in warning for warning in answer["warnings"])
    with (tmp_path / "load.monitor.csv").open(newline="") as file:
        looks = list(csv.DictReader(file))
    assert looks[0]["gpu_used_bytes"] == f"{20 * GIB} -"
    assert len(looks) == answer["server"]["looks"] >= 2
    assert json.loads((tmp_path / "load.json").read_text()) == answer


def test_memory_above_the_plan_is_code_1(ran, cards, plan, monkeypatch):
    monkeypatch.setattr(cards, "most_bytes", 23 * GIB)
    code, answer, _ = ran("--requests", "40", "--output-tokens", "40", "--plan", plan, "--concurrency", "2")
    assert code == 1
    assert answer["memory"]["within_plan"] is False
    assert any("the plan has 22.00 GiB at most" in warning for warning in answer["warnings"])


def test_a_rate_is_kept_and_what_would_be_too_many_is_left_out(ran, stand_in):
    _, answer, _ = ran("--rate", "50", "--duration", "1", "--output-tokens", "1")
    assert 20 <= answer["requests"]["sent"] <= 80
    assert answer["requests"]["left_out"] == 0
    stand_in.gap_s = 0.5
    _, answer, _ = ran("--rate", "50", "--duration", "0.6", "--output-tokens", "1", "--concurrency", "2", name="b.csv")
    assert answer["requests"]["left_out"] > 5
    assert stand_in.most_at_once <= 50


@pytest.mark.parametrize(
    ("behave", "problem"),
    [
        ("refuse", "status 400: too long for me"), ("garbage", "the answer holds no token"), ("break", "broke off"),
        ("error", "EngineCore died"), ("no json", "no event of a completion"), ("hang", "no whole answer in 0.3 s"),
    ],
)  # fmt: skip
def test_a_server_that_misbehaves_is_told_and_the_test_goes_on(ran, stand_in, tmp_path, behave, problem):
    stand_in.behave = behave
    code, answer, err = ran("--timeout", "0.3", "--duration", "0.7", "--concurrency", "2", "--output-tokens", "4")
    assert (code, err) == (4, "")
    assert answer["requests"]["failed"] == answer["requests"]["sent"] >= 2
    assert any(problem in told for told in answer["requests"]["problems"]), answer["requests"]
    assert len(read_rows(tmp_path / "load.csv")) == answer["requests"]["sent"]


def test_some_failures_are_code_1(ran, stand_in):
    stand_in.behave = "fail"
    code, answer, _ = ran("--duration", "0.8", "--concurrency", "2", "--output-tokens", "1")
    assert code == 1
    assert "status 503: busy" in answer["requests"]["problems"]
    assert answer["requests"]["answered"] > 0


def test_answers_after_the_end_are_cancelled_and_written(ran, stand_in, tmp_path):
    stand_in.behave = "hang"
    began = time.monotonic()
    code, answer, _ = ran("--duration", "0.3", "--concurrency", "3")
    assert (code, answer["requests"]["cancelled"]) == (4, 3)
    assert time.monotonic() - began < 6
    assert [row.status for row in read_rows(tmp_path / "load.csv")] == ["cancelled"] * 3


def test_a_server_that_dies_is_told(ran, stand_in):
    stand_in.dies_after = 6
    code, answer, err = ran("--duration", "1", "--concurrency", "2", "--output-tokens", "4")
    assert (code, err) == (1, "")
    assert answer["requests"]["answered"] >= 5
    assert any("no answer" in warning or "Connect" in warning for warning in answer["warnings"]), answer["warnings"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_what_was_measured(stand_in, tmp_path, number):
    csv_file = tmp_path / "load.csv"
    command = [
        sys.executable,
        "-m",
        "planner",
        "loadtest",
        "--url",
        stand_in.url,
        "--csv",
        str(csv_file),
        "--duration",
        "60",
    ]
    stand_in.gap_s = 0.005
    with subprocess.Popen(
        [*command, "--output-tokens", "10"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (csv_file.exists() and csv_file.read_text().count("\n") > 10):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "(interrupted)" in out
    rows = read_rows(csv_file)
    assert {row.status for row in rows} <= {"ok", "cancelled"}
    assert json.loads((tmp_path / "load.json").read_text())["requests"]["sent"] == len(rows)


def test_a_full_disk_loses_rows_and_not_the_test(ran, monkeypatch):
    from planner.monitor import csv_log

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv_log.os, "write", full)
    code, answer, err = ran("--requests", "4", "--output-tokens", "2")
    assert (code, err) == (0, "")
    assert answer["requests"]["rows_lost"] == answer["requests"]["answered"] == 4
    assert any("No space left on device" in warning for warning in answer["warnings"])


def test_a_key_comes_from_the_environment(ran, stand_in, monkeypatch):
    monkeypatch.setenv("LOAD_KEY", "secret")
    _, answer, _ = ran("--requests", "1", "--api-key-env", "LOAD_KEY")
    assert stand_in.asked[0][2] == "Bearer secret"
    assert "secret" not in json.dumps(answer)


def test_a_redirect_is_not_followed(ran, stand_in):
    stand_in.behave = "redirect"
    code, _, err = ran()
    assert code == 4
    assert "which is not followed" in err
    stand_in.behave = "no models"
    assert ran()[0] == 4


@pytest.mark.parametrize("package", ["httpx", "prometheus_client"])
def test_a_missing_package_is_named(ran, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = ran("--requests", "1")
    assert code == 4
    assert err.count("\n") == 1
    assert "vplan[monitor]" in err


def test_the_named_model_is_asked(ran, stand_in):
    ran("--model", "n", "--requests", "1")
    assert stand_in.asked[0][1]["model"] == "n"
    code, _, err = ran("--model", "o", name="b.csv")
    assert code == 4
    assert "lists m, n, not o" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mix", "text=1,sound=2"), "--mix"), (("--mix", "text=0"), "--mix"), (("--mix", "text=nan"), "--mix"),
        (("--text-tokens", "9-3"), "--text-tokens"), (("--output-tokens", "0"), "--output-tokens"),
        (("--text-tokens", "normal:5"), "--text-tokens"), (("--image-size", "1024"), "--image-size"),
        (("--image-size", "16384x16384", "--images", "2"), "--image-size"), (("--video-frames", "0"), "--video-frames"),
        (("--concurrency", "0"), "--concurrency"), (("--rate", "-1"), "--rate"), (("--duration", "inf"), "--duration"),
        (("--timeout", "nan"), "--timeout"), (("--csv", "load.txt"), "--csv"),
        (("--csv", "/dev/null/a.csv"), "--csv"),
        (("--plan", "/dev/null"), "--plan"), (("--api-key-env", "NO_SUCH_VARIABLE"), "--api-key-env"),
        (("--url", "http://192.0.2.1:8000"), "--yes"), (("--url", "192.0.2.1", "--yes"), "--yes"),
        (("--url", "ftp://localhost"), "--url"), (("--url", "http://u:p@localhost"), "--url"),
        (("--draw", "/dev/null/a.csv"), "/dev/null/a.csv"), (("--format", "xml"), "--format"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(ran, arguments, words):
    code, out, err = ran(*arguments)
    assert (code, out) == (2, None)
    assert words in err
    assert len(err.splitlines()) == 1


def test_an_earlier_test_is_not_spoilt(ran, tmp_path):
    assert ran("--requests", "2")[0] == 0
    before = (tmp_path / "load.csv").read_bytes()
    code, _, err = ran("--requests", "2")
    assert code == 2
    assert "is there already" in err
    assert (tmp_path / "load.csv").read_bytes() == before
    (tmp_path / "empty.csv").touch()
    assert ran("--requests", "1", name="empty.csv")[0] == 0


def test_the_text_answer_and_drawing_later(stand_in, cards, tmp_path, capsys):
    file = str(tmp_path / "a.csv")
    assert main(["loadtest", "--url", stand_in.url, "--csv", file, "--requests", "3", "--output-tokens", "2"]) == 0
    out = capsys.readouterr().out
    for words in ("3 sent, 3 answered", "GPU 0: 20.00 GiB before the load", "picture: ", "a.monitor.csv"):
        assert words in out, out
    (tmp_path / "a.png").unlink()
    assert main(["loadtest", "--draw", file]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="not those of one load test"):
        draw(Path(file))


def test_a_killed_test_loses_no_written_row(stand_in, tmp_path):
    csv_file = tmp_path / "load.csv"
    command = [sys.executable, "-m", "planner", "loadtest", "--url", stand_in.url, "--csv", str(csv_file)]
    with subprocess.Popen(
        [*command, "--output-tokens", "3"], stdout=subprocess.DEVNULL, env=dict(os.environ)
    ) as process:
        while not (csv_file.exists() and csv_file.read_text().count("\n") > 5):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert csv_file.read_text().endswith("\n")
    assert len(read_rows(csv_file)) >= 5
