"""The README and the pages under docs run: every `$ vplan ...` line in them, as a process."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            joined = block.replace("\\\n", " ")
            lines = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
            found += [(page.name, line) for line in lines if line.startswith(("vplan ", "./vplan ", "./check"))]
    return found


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(*item, id=f"{item[0]}: {item[1][:60]}") for item in commands()]
)
def test_the_pages_commands_run(vplan, page, line, tmp_path):
    words = shlex.split(line, comments=True)
    program = words[0].removeprefix("./")
    if program == "check":
        assert (ROOT / "check").stat().st_mode & 0o111
        return
    done = vplan(*words[1:], cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_names_this_machine():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(tmp|work|root|home)/", text), page.name
