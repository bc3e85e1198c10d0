"""docs/scenarios.md: each command does what the page quotes, and each plan leaves the device its margin."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scenarios.md"
MARGIN = 0.10


def quoted() -> list[tuple[str, str, list[str]]]:
    """(scenario, command, lines quoted from its answer) of the commands with quotes."""
    found: list[tuple[str, str, list[str]]] = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        number = section.partition(".")[0]
        for block in re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL):
            for part in re.split(r"^\$ vplan ", block, flags=re.MULTILINE)[1:]:
                command, *lines = part.strip().splitlines()
                if lines:
                    found.append((number, command, lines))
    return found


def plans() -> list[tuple[str, str]]:
    """(scenario, command) of the plans: the first command after "The plan"."""
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        match = re.search(r"^The plan.*?\$ vplan (.*?)$", section, flags=re.MULTILINE | re.DOTALL)
        assert match, section[:40]
        found.append((section.partition(".")[0], match[1]))
    return found


@pytest.mark.parametrize(
    ("command", "lines"), [pytest.param(*item[1:], id=f"{item[0]}: {item[1][:40]}") for item in quoted()]
)
def test_the_page_quotes_the_answer(vplan, command, lines):
    done = vplan(*shlex.split(command), "--offline")
    said = " ".join(done.stdout.split())
    for line in lines:
        assert " ".join(line.split()) in said, f"{line}\nis not in\n{done.stdout}{done.stderr}"
    refused = any(re.match(r"[a-z_]+: ", line) and not line.startswith(("try:", "warning:")) for line in lines)
    assert done.returncode == (1 if refused or "rejected" in lines[0] else 0)


@pytest.mark.parametrize("command", [pytest.param(item[1], id=item[0]) for item in plans()])
def test_the_plan_starts_and_leaves_its_margin(vplan, command):
    done = vplan(*shlex.split(command), "--format", "json", "--offline")
    assert done.returncode == 0, done.stdout
    gpu = json.loads(done.stdout)["per_gpu"]
    need = gpu["used_after_startup_bytes"] + gpu["vision_encoder_runtime_peak_bytes"]
    assert need * (1 + MARGIN) <= gpu["total_memory_bytes"]


def test_all_eight_are_there():
    assert [number for number, _ in plans()] == [str(number) for number in range(1, 9)]
