"""Nothing of the machine's own configuration may reach these tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def user_config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user configuration folder, returned so that a test can put catalogs there."""
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setattr("platformdirs.user_config_dir", lambda *_: str(folder))
    return folder
