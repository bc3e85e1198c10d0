"""The fingerprints and the report of scripts/check_drift.py, on a tree of three files."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def drift(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_drift

    check_drift.parsed.cache_clear()
    check_drift.pieces_of.cache_clear()
    yield check_drift
    for name in ("check_drift", "generate_vllm_flags", "vllm_source"):
        sys.modules.pop(name, None)


def tree(drift, root, body, file="v1/worker.py"):
    for path, text in {"engine/arg_utils.py": "", "_version.py": "version = '1.2.3+x'\n", file: body}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return drift.SourceTree(root)


BODY = '''
LIMIT = 4


class Worker:
    """Text."""

    def room(self):
        """Other text."""
        return LIMIT * 2  # a comment
'''


def test_citation_names_the_innermost_definition(drift, tmp_path):
    source = tree(drift, tmp_path, BODY)
    assert source.version() == "1.2.3"
    assert drift.cited_pieces(source, "v1/worker.py", "10", "") == ["v1/worker.py::Worker.room"]
    assert drift.cited_pieces(source, "worker.py", "", "Worker") == ["v1/worker.py::Worker"]
    assert drift.cited_pieces(source, "worker.py", "2", "") == ["v1/worker.py::LIMIT"]
    assert drift.cited_pieces(source, "worker.py", "", "and") == ["v1/worker.py"]
    assert drift.cited_pieces(source, "absent.py", "1", "") == []


def test_fingerprint_follows_the_code_only(drift, tmp_path):
    piece = "v1/worker.py::Worker.room"
    before = drift.fingerprint(tree(drift, tmp_path / "a", BODY), piece)
    reworded = BODY.replace("Other text", "New text").replace("a comment", "another")
    assert drift.fingerprint(tree(drift, tmp_path / "b", reworded), piece) == before
    assert drift.fingerprint(tree(drift, tmp_path / "c", BODY.replace("* 2", "* 3")), piece) != before
    assert drift.fingerprint(tree(drift, tmp_path / "d", "LIMIT = 4\n"), piece) is None
    moved = drift.piece_facts(tree(drift, tmp_path / "e", BODY, "v1/moved.py"), piece, [])
    assert moved == {"found_at": "v1/moved.py::Worker.room", "fingerprint": before, "cited_by": []}


def test_report_lists_what_differs(drift):
    flag = {"options": ["--x"], "negatives": [], "arity": "value", "kind": "int", "choices": [], "default": 1}
    old = {
        "version": "1",
        "flags": {"x": flag, "gone": {**flag, "options": ["--gone"]}},
        "names": {"cache dtypes": ["auto", "fp8"]},
        "log_lines": {"a {}": True},
        "pieces": {"f.py::g": {"found_at": "f.py::g", "fingerprint": "1", "cited_by": ["planner/x.py"]}},
    }
    new = {
        "version": "2",
        "flags": {"x": {**flag, "default": 2}, "added": {**flag, "options": ["--added"]}},
        "names": {"cache dtypes": ["auto", "nvfp4"]},
        "log_lines": {"a {}": False},
        "pieces": {"f.py::g": {"found_at": "f.py::g", "fingerprint": "2", "cited_by": []}},
    }
    text, differs = drift.report(old, new)
    assert differs
    for line in (
        "- `--gone`",
        "- `--added`",
        "- `--x` default: `1` became `2`",
        "- gone: `fp8`",
        "- added: `nvfp4`",
        "- `a {}`",
        "- `f.py::g`, cited by `planner/x.py`",
    ):
        assert line in text.splitlines()
