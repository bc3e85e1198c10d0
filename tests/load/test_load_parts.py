"""What a load test is made of: targets, mixes, media, bodies, answers, rows and the summary."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, OutsideError
from planner.load.answer import Answer, Broken
from planner.load.bodies import request_of
from planner.load.media import image_url, video_url
from planner.load.mix import Job, Mix, parse_lengths, parse_sizes, parse_weights
from planner.load.recorder import CardPeak, Peaks
from planner.load.rows import COLUMNS, Outcome, read_rows
from planner.load.run import files_of
from planner.load.summary import exit_code, quantile, summary
from planner.load.target import Served, ask, parse_target
from planner.monitor.planned import Planned

SERVED = Served("m", 4096, True)


def test_only_loopback_is_loaded_without_being_asked_twice():
    assert parse_target("localhost:8000", False).is_loopback
    assert parse_target("http://[::1]:1/v1/", False).base == "http://[::1]:1"
    assert parse_target("http://127.9.9.9", False).is_loopback
    assert not parse_target("https://example.org/api/v1", True, "key").is_loopback
    for url, yes in (("https://example.org", False), ("example.org", True), ("http://localhost.example.org", False)):
        with pytest.raises(InputError, match="--yes"):
            parse_target(url, yes)
    with pytest.raises(InputError, match="unencrypted"):
        parse_target("http://example.org", True, "key")


def test_nobody_answers():
    with pytest.raises(OutsideError, match="no answer"):
        ask(parse_target("http://127.0.0.1:1", False), None, 1.0)


def job(**values: Any) -> Job:
    return Job(**{"number": 0, "kind": "text", "text_tokens": 9, "output_tokens": 3, "size": (32, 16), "pieces": 0,
                  "seed": 5, **values})  # fmt: skip


def test_bodies_are_what_vllm_reads():
    path, body = request_of(job(), SERVED)
    sent = json.loads(body)
    assert (path, len(sent["prompt"]), sent["max_tokens"], sent["ignore_eos"]) == ("/v1/completions", 9, 3, True)
    assert all(32 <= token < 128 for token in sent["prompt"])
    path, body = request_of(job(), Served("m", None, False), text_as_chat=True)
    assert path == "/v1/chat/completions"
    assert "ignore_eos" not in json.loads(body)
    kinds = {}
    for kind, pieces in (("image", 2), ("video", 3)):
        content = json.loads(request_of(job(kind=kind, pieces=pieces), SERVED)[1])["messages"][0]["content"]
        kinds[kind] = [part["type"] for part in content]
        assert len(content[-1]["text"].split()) == 9
    assert kinds == {"image": ["image_url", "image_url", "text"], "video": ["video_url", "text"]}


def test_pictures_are_pictures_and_no_two_alike():
    image = pytest.importorskip("PIL.Image")
    chance = random.Random(1)
    url = image_url((37, 21), chance)
    opened = image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)))
    opened.load()
    assert opened.size == (37, 21)
    assert len(opened.convert("RGB").getcolors()) == 2
    frames = video_url((16, 8), 4, chance).removeprefix("data:video/jpeg;base64,").split(",")
    assert len(set(frames)) == 4
    assert image.open(io.BytesIO(base64.b64decode(frames[3]))).convert("RGB").size == (16, 8)
    assert image_url((37, 21), chance) != url


def test_a_seed_is_a_sequence_and_lengths_follow_their_distribution():
    mix = Mix(weights=(3.0, 1.0, 0.0), text_tokens=parse_lengths("-", "100-300"), images=2)
    first, second = ([next(jobs) for _ in range(500)] for jobs in (mix.jobs(7), mix.jobs(7)))
    assert first == second
    assert len({one.seed for one in first}) == 500
    counted = Counter(one.kind for one in first)
    assert 320 < counted["text"] < 430
    assert counted["video"] == 0
    assert {one.pieces for one in first} == {0, 2}
    lengths = [one.text_tokens for one in first]
    assert 100 <= min(lengths) < 110
    assert 290 < max(lengths) <= 300
    chance = random.Random(0)
    normal = [parse_lengths("-", "normal:1000:100").draw(chance) for _ in range(2000)]
    assert 990 < sum(normal) / 2000 < 1010
    skewed = sorted(parse_lengths("-", "lognormal:1000:0.5").draw(chance) for _ in range(2000))
    assert 940 < skewed[1000] < 1060
    assert skewed[1900] > 2000
    short = Mix(text_tokens=parse_lengths("-", "8k"), output_tokens=parse_lengths("-", "100"), longest=4096)
    assert next(short.jobs(0)).text_tokens == 4096 - 100 - 1


def test_weights_and_sizes():
    assert parse_weights("video") == (0.0, 0.0, 1.0)
    assert parse_weights("text=6, image=3") == (6.0, 3.0, 0.0)
    assert parse_sizes("-", ["640x480", "1×1"], 1) == ((640, 480), (1, 1))


def test_an_answer_is_timed_by_its_tokens():
    answer = Answer()
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    token = {"choices": [{"delta": {"content": ""}}]}
    for at, document in ((1.0, role), (2.0, token), (2.5, token), (4.0, token)):
        data = b"data: " + json.dumps(document).encode() + b"\r\n\r\n"
        answer.feed(data[:9], at)
        answer.feed(data[9:], at)
    assert (answer.first_s, answer.last_s, answer.longest_gap_s, answer.mean_gap_s) == (2.0, 4.0, 1.5, 1.0)
    assert not answer.done
    answer.feed(b': comment\n\ndata: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}}\n', 4.5)
    answer.feed(b"data: [DONE]\n", 5.0)
    assert (answer.completion_tokens, answer.prompt_tokens, answer.mean_gap_s, answer.done) == (5, 4, 0.5, True)


@pytest.mark.parametrize("data", [b"data: []\n", b"data: 1\n", b'data: {"choices": [1]}\n', b"x" * (5 << 20)])
def test_an_answer_that_is_none(data):
    with pytest.raises(Broken):
        Answer().feed(data, 0.0)


def test_quantiles_and_verdicts():
    assert [quantile([4.0, 1.0, 3.0, 2.0], share) for share in (0.5, 0.9, 0.99)] == [2.0, 4.0, 4.0]
    planned = Planned(model="m", used_bytes=5, used_interval=(4, 6), peak_bytes=8, total_bytes=10, capacity_tokens=1)
    good = Outcome(0, "text", 1.0, "ok", 1, 0, 0, 0, ttft_s=0.1)
    for peak, within, code in ((8, True, 0), (9, False, 1)):
        peaks = Peaks(1, (CardPeak(0, 5, peak, 10),), None, None, None, None, ())
        document = summary([good], peaks, planned, 1.0, {})
        assert (document["memory"]["within_plan"], exit_code(document)) == (within, code)
    empty = summary([], Peaks(0, (), None, None, None, None, ()), None, 0.0, {})
    assert (empty["memory"]["within_plan"], exit_code(empty)) == (None, 4)


def test_a_row_that_was_cut_short_is_left_out(tmp_path):
    file = tmp_path / "a.csv"
    whole = "0,text,1.0,ok,5,0,0,0,5,2,0.1,0.1,0.1,0.3,"
    file.write_text(",".join(COLUMNS) + f"\n{whole}\n1,text,2.0,o")
    assert [row.number for row in read_rows(file)] == [0]
    file.write_text("a,b\n")
    with pytest.raises(InputError, match="not the CSV of a load test"):
        read_rows(file)
    assert files_of(Path("x/load.csv")).looks == Path("x/load.monitor.csv")
