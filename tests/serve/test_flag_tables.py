"""The flag tables against what vLLM's own parser holds."""

import json
import shlex
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.releases.flags import flags_for, removed_flag
from planner.releases.removed_flags import REMOVED_FLAGS
from planner.serve.flag_parser import parse_flags
from planner.values import Rejected

DATA = Path(__file__).parents[1] / "data"
SENTENCES = DATA / "vllm_parser_sentences_0_26_0.json"
NARGS = {"switch": 0, "bool": 0, "value": None, "list": "+", "optional": "?", "append": None}


@pytest.mark.parametrize("release", ["0.26.0", "0.33.0"])
def test_table_holds_every_option_of_the_real_parser_and_no_other(release):
    recorded = json.loads((DATA / f"vllm_parser_{release.replace('.', '_')}.json").read_text())
    real = {action["dest"]: action for action in recorded["actions"]}
    table = {flag.dest: flag for flag in flags_for(release)}
    assert sorted(table) == sorted(real)
    for dest, flag in table.items():
        action = real[dest]
        assert sorted(flag.options + flag.negatives) == sorted(action["options"]), dest
        assert NARGS[flag.arity] == action["nargs"], dest
        assert list(flag.choices) == action["choices"], dest


def test_later_release_pairs_enable_with_disable_and_drops_flags():
    table = {flag.dest: flag for flag in flags_for("0.33.0")}
    assert "--disable-prefix-caching" in table["enable_prefix_caching"].negatives
    assert "calculate_kv_scales" not in table
    assert "--device-memory-utilization" in table["gpu_memory_utilization"].options


def test_release_not_entered_borrows_the_nearest_table():
    assert flags_for("0.27.1") == flags_for("0.26.0")
    with pytest.raises(InputError):
        flags_for("latest")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--swap-space", "recomputed"),
        ("--swap_space=4", "recomputed"),
        ("--task", "--runner"),
        ("--max-seq-len-to-capture", "--max-cudagraph-capture-size"),
        ("--guided-decoding-backend", "--structured-outputs-config"),
        ("--speculative-model", "--speculative-config"),
        ("--worker-use-ray", "--distributed-executor-backend ray"),
        ("--rope-theta", "--hf-overrides"),
    ],
)
def test_removed_option_has_a_replacement(option, words):
    removed = removed_flag(option)
    assert removed is not None
    assert any(words in fix for fix in removed.fix)


def test_replacements_are_options_of_the_release():
    known = {option for flag in flags_for("0.33.0") for option in (*flag.options, *flag.negatives)}
    for removed in REMOVED_FLAGS:
        for fix in removed.fix:
            named = [word.rstrip(",.;:)") for word in fix.split() if word.startswith("--")]
            assert set(named) <= known, fix


def test_each_removed_option_is_listed_once():
    options = [option for removed in REMOVED_FLAGS for option in removed.options]
    assert len(options) == len(set(options))


@pytest.mark.parametrize(("line", "sentence"), json.loads(SENTENCES.read_text())["lines"])
def test_parser_accepts_and_refuses_with_the_real_sentences(line, sentence):
    try:
        problems = parse_flags(shlex.split(line), "0.26.0").problems
        found = problems[0].message if problems else None
    except Rejected as refused:
        found = refused.rejection.message
    assert found == sentence
