"""The lock is whole, plain, and within the bounds of pyproject.toml; the audit never takes silence for an all-clear."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

LINE = re.compile(r"([a-z0-9][a-z0-9.-]*)==([^ ;]+)(?: ; .+)?")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    """Of the project and its extras, other than the project itself."""
    lists = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    found = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in found if requirement.name != "vplan"]


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()
    plain = [line for line in lines if not line.startswith("#")]
    matches = [LINE.fullmatch(line) for line in plain]
    assert None not in matches, [line for line, match in zip(plain, matches, strict=True) if match is None]
    return {match[1]: Version(match[2]) for match in matches if match}


def test_the_lock_has_every_requirement_within_its_bounds():
    """And nothing but names, versions and markers: no index, no path, no option of some machine."""
    versions = locked()
    for requirement in requirements():
        name = requirement.name.lower().replace("_", "-")
        assert versions[name] in requirement.specifier, f"{requirement}: ./check lock"


def test_every_requirement_has_a_lower_bound():
    for requirement in requirements():
        assert any(one.operator == ">=" for one in requirement.specifier), str(requirement)
        assert not requirement.url


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("not JSON", "Expecting value"),
        ("{}", "without advisories"),
        ("[]", "without advisories"),
        (json.dumps({"vulnerabilities": []}), "without advisories"),
        (json.dumps({"vulnerabilities": [{"id": "X"}]}), None),
    ],
)
def test_a_service_has_to_know_an_old_advisory(audit, tmp_path, answer, problem):
    (tmp_path / "answer").write_text(answer)
    found = audit.problem_with((tmp_path / "answer").as_uri())
    assert found is None if problem is None else problem in found


def test_without_a_service_the_audit_says_so(audit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "SERVICE", (tmp_path / "absent").as_uri())
    assert audit.main() == 0
    assert "not audited" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (1, 1)])
def test_findings_fail(audit, tmp_path, monkeypatch, code, wanted):
    (tmp_path / "answer").write_text(json.dumps({"vulnerabilities": [{"id": "X"}]}))
    tool = tmp_path / "uv"
    tool.write_text(f'#!/bin/sh\ncase "$*" in *--version*) exit 0 ;; *--strict*) exit {code} ;; esac\nexit 9\n')
    tool.chmod(0o700)
    monkeypatch.setattr(audit, "SERVICE", (tmp_path / "answer").as_uri())
    monkeypatch.setattr(audit, "UV", tool)
    assert audit.main() == wanted
