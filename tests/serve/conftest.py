import json
import os
import stat
import subprocess
import sys

import pytest

RECORDER = """#!{python}
import json, os, sys
names = ["VLLM_X", "HF_ENDPOINT", "VLLM_WORKER_MULTIPROC_METHOD"]
call = [os.path.basename(sys.argv[0]), sys.argv[1:], {{name: os.environ.get(name) for name in names}}]
with open(os.environ["RECORD"], "a") as out:
    print(json.dumps(call), file=out)
"""


@pytest.fixture
def shell(tmp_path):
    """Runs a text through `sh` with programs that only write down how they were called; returns those calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("vllm", "docker", "xinference", "xinference-local", "hf", "modelscope", "ray"):
        program = programs / name
        program.write_text(RECORDER.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def run(text):
        record = tmp_path / "record"
        record.write_text("")
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record), "HOME": "/home/someone"}
        finished = subprocess.run(
            ["sh"], input=text, text=True, check=True, env=environment, cwd=tmp_path, capture_output=True
        )
        assert finished.stderr == ""
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "record"]
        return [json.loads(line) for line in record.read_text().splitlines()]

    return run
