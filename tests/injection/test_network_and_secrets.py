"""Nothing leaves the machine unasked, what is fetched is bounded, and no secret is told."""

from __future__ import annotations

import ast
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import huggingface_hub
import pytest

from planner.cli.main import main
from planner.errors import InputError, OutsideError
from planner.foreign import is_secret, redacted
from planner.monitor.scrape import Server
from planner.serve.launch import FORMS
from planner.serve.parse import parse_command
from planner.sources import hub
from tests.conftest import ROOT

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
OTHER = "s3cr3t-of-a-mirror"
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that were looked up or connected to; every attempt fails as without a network."""
    found: list[str] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        found.append(str(host))
        raise OSError(101, "Network is unreachable")

    def refuse_connect(_: socket.socket, address: object) -> None:
        refuse(address[0] if isinstance(address, tuple) else address)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse_connect)
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "HF_ENDPOINT":
            monkeypatch.delenv(name)
    return found


@pytest.mark.parametrize("offline", [(), ("--offline",)], ids=["online", "offline"])
@pytest.mark.parametrize("command", ["estimate", "fit", "explain", "speed"])
def test_catalog_ids_need_no_network(asked, capsys, command, offline):
    code = main([command, "--model", MODEL, "--gpus", "l20:1", "--max-model-len", "2048", *offline])
    assert code == 0, capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_offline_asks_nobody(asked, capsys, source):
    arguments = ["--model", "nobody/has-this", "--gpus", "l20:1", "--offline", "--source", source]
    assert main(["estimate", *arguments]) == 2
    assert "--offline" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(("source", "host"), [("hf", "huggingface.co"), ("modelscope", "modelscope.cn")])
def test_an_unknown_id_asks_its_hub_alone(asked, capsys, source, host):
    assert main(["estimate", "--model", "nobody/has-this", "--gpus", "l20:1", "--source", source]) == 4
    assert set(asked) == {host}
    assert "nobody/has-this" in capsys.readouterr().err


def metadata(monkeypatch: pytest.MonkeyPatch, size: int, location: str) -> None:
    monkeypatch.setattr(hub, "_has_address", lambda _: True)
    monkeypatch.setattr(
        huggingface_hub, "get_hf_file_metadata", lambda *_, **__: SimpleNamespace(size=size, location=location)
    )

    def download(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_what_is_too_large_is_not_fetched(monkeypatch):
    metadata(monkeypatch, 1 << 40, "https://huggingface.co/x")
    with pytest.raises(OutsideError, match="more than 8 MiB; it is not fetched"):
        hub.fetch_model("owner/model", "hf")


@pytest.mark.parametrize("location", ["http://evil.test/x", "ftp://huggingface.co/x", "file:///etc/passwd"])
def test_a_redirect_elsewhere_than_https_is_not_followed(monkeypatch, location):
    metadata(monkeypatch, 100, location)
    with pytest.raises(OutsideError, match="not https"):
        hub.fetch_model("owner/model", "hf")


@pytest.mark.parametrize(
    "url", ["http://mirror.test", "ftp://mirror.test", "//mirror.test", f"http://me:{OTHER}@x.test"]
)
def test_an_endpoint_that_is_not_https_is_refused_without_its_password(monkeypatch, url):
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(InputError, match="only https") as refused:
        hub.fetch_model("owner/model", "hf")
    assert OTHER not in str(refused.value)


def test_errors_of_the_hub_tell_no_token(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MIRROR_PASSWORD", OTHER)
    monkeypatch.setattr(hub, "_has_address", lambda _: True)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"Authorization: Bearer {TOKEN} for https://me:{OTHER}@mirror.test/x?p={OTHER}")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert main(["estimate", "--model", "owner/model", "--gpus", "l20:1"]) == 4
    shown = "".join(capsys.readouterr())
    assert "Authorization" in shown
    assert TOKEN not in shown
    assert OTHER not in shown


def test_an_internal_error_tells_no_token(monkeypatch, capsys):
    from planner.sources import load

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"token={TOKEN}")

    monkeypatch.setattr(load, "load_folder", fail)
    assert main(["estimate", "--model", str(ROOT / "tests"), "--gpus", "l20:1"]) == 4
    shown = "".join(capsys.readouterr())
    assert "internal error" in shown
    assert TOKEN not in shown


def test_a_server_that_cannot_be_reached_is_named_without_its_password():
    server = Server(f"http://me:{OTHER}@127.0.0.1:9", 1.0)
    try:
        problem = server.look().problem
    finally:
        server.close()
    assert problem is not None
    assert OTHER not in problem


COMMANDS = (
    f"HF_TOKEN={TOKEN} vllm serve {MODEL} --max-model-len 2048",
    f"export HF_TOKEN={TOKEN}; vllm serve {MODEL} --max-model-len 2048",
    f"docker run -e HUGGING_FACE_HUB_TOKEN={TOKEN} --gpus all vllm/vllm-openai:v0.26.0 {MODEL} --max-model-len 2048",
    f"vllm serve {MODEL} --hf-token {TOKEN} --max-model-len 2048",
    f"vllm serve {MODEL} --hf-token={TOKEN} --max-model-len 2048",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_answer_holds_a_token(command, capsys, tmp_path):
    assert any("left out" in warning for warning in parse_command(command).warnings)
    for form in ("text", "json", "csv", "markdown"):
        assert main(["estimate", "--gpus", "l20:1", "--offline", "--command", command, "--format", form]) == 0
        assert TOKEN not in "".join(capsys.readouterr())
    for form in set(FORMS) - {"multinode", "ray"}:
        assert main(["launch", "--gpus", "l20:1", "--offline", "--command", command, "--form", form]) == 0
        shown = "".join(capsys.readouterr())
        assert TOKEN not in shown


def test_names_of_secrets():
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        assert is_secret(name)
    for name in ("TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS_PER_EXPERT_FUSED_MOE_CHUNK", "HF_HOME", "KEYBOARD"):
        assert not is_secret(name)
    assert redacted("https://a:b@host/x") == "https://***@host/x"
    assert redacted("no secret here", ("short",)) == "no secret here"


CALLS_THAT_RUN_OR_TRUST = {
    "eval", "exec", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads",
    "torch.load", "shelve.open", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp", "tempfile.NamedTemporaryFile",
    "tempfile.mkstemp", "tempfile.mkdtemp", "numpy.load", "np.load", "runpy.run_path",
}  # fmt: skip


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted((ROOT / "planner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def test_nothing_in_the_planner_runs_or_unpickles_data():
    """Text becomes code nowhere; no shell is started; YAML is loaded by the strict loader only; TLS is never off."""
    found = [(path, name) for path, name, _ in _calls() if name in CALLS_THAT_RUN_OR_TRUST]
    for path, name, call in _calls():
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if keywords.get("shell") == "True" or keywords.get("verify") == "False":
            found.append((path, name))
        if name == "yaml.load" and keywords.get("Loader") != "_StrictLoader":
            found.append((path, name))
    assert found == []


def test_temporary_files_are_private():
    """The planner makes temporary folders by TemporaryDirectory alone, which is the owner's even without a umask."""
    makers = {name for _, name, _ in _calls() if name.startswith("tempfile.")}
    assert makers == {"tempfile.TemporaryDirectory"}
    before = os.umask(0)
    try:
        with tempfile.TemporaryDirectory(prefix="vplan-") as folder:
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    finally:
        os.umask(before)


def test_an_api_key_does_not_leave_with_a_plan(capsys):
    """A key in the environment is no part of an answer."""
    command = f"VLLM_API_KEY={OTHER} vllm serve {MODEL} --max-model-len 2048"
    assert main(["estimate", "--gpus", "l20:1", "--offline", "--command", command, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert OTHER not in json.dumps(document)
