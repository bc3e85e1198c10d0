"""scripts/mutate.py makes each change alone, and calls it survived only where the tests pass with it."""

import importlib.util
import sys

import pytest

from tests.conftest import ROOT

SOURCE = '''
def room(total: int = 3) -> int:
    """Text of 4."""
    if not total > 2 and total is not None:
        raise ValueError(f"{total + 1}")
    return total * 2 if total else -1
'''


@pytest.fixture
def mutate(monkeypatch):
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutate", module)
    spec.loader.exec_module(module)
    return module


def test_each_mutant_is_one_change_of_the_code(mutate):
    found = list(mutate.mutants("room.py", SOURCE))
    texts = {mutate.changed(SOURCE, mutant) for mutant in found}
    assert len(texts) == len(found) == 10
    assert all("Text of 4" in text and "total + 1" in text for text in texts)
    changes = {mutant.change for mutant in found}
    assert {
        "3  ->  4",
        "total > 2  ->  total >= 2",
        "not total > 2  ->  total > 2",
        "total * 2  ->  total + 2",
    } <= changes


@pytest.mark.parametrize(("wanted", "passing"), [(6, True), (7, False)])
def test_a_mutant_survives_where_the_tests_pass(mutate, tmp_path, wanted, passing):
    (tmp_path / "room.py").write_text(SOURCE)
    (tmp_path / "test_room.py").write_text(f"from room import room\n\ndef test():\n    assert room() == {wanted}\n")
    assert mutate.passes(tmp_path, ["test_room.py"], 60) is passing
