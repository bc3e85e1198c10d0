"""Known vulnerabilities of the packages in requirements-dev.lock, by pip-audit.

Exit code 0 where none is known, or where the advisory service or pip-audit cannot be had (said so); 1 on findings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK = REPOSITORY / "requirements-dev.lock"
SERVICE = "https://pypi.org/pypi/PyYAML/5.3/json"
"""A release with published advisories: a service that names none for it (a mirror, a proxy) knows none at all."""
UV = Path(sys.executable).with_name("uv")


def problem_with(service: str) -> str | None:
    """Why advisories cannot be asked for; None where they can."""
    try:
        with urllib.request.urlopen(service, timeout=10) as answer:
            document = json.loads(answer.read(8 << 20))
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    if not isinstance(document, dict) or not document.get("vulnerabilities"):
        return "it answers without advisories"
    return None


def main() -> int:
    problem = problem_with(SERVICE)
    if problem is None:
        tool = [str(UV), "tool", "run", "pip-audit"]
        if subprocess.run([*tool, "--version"], capture_output=True, check=False).returncode:
            problem = "pip-audit cannot be installed"
    if problem is not None:
        print(f"not audited: the advisory service at pypi.org cannot be asked ({problem})")
        return 0
    return subprocess.run(
        [*tool, "--requirement", str(LOCK), "--no-deps", "--disable-pip", "--strict"], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
