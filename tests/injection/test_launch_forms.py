"""Every launch form against every hostile text, executed: what starts is what was planned, and nothing else runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hostile import HOSTILE, REFUSED

from planner.errors import InputError
from planner.serve.command import model_argument, shell_command
from planner.serve.launch import FORMS, LaunchPlan, render

WORDS = pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE.keys())
REFUSALS = pytest.mark.parametrize("word", REFUSED.values(), ids=REFUSED.keys())


def plan_of(word: str, *, nodes: int = 1, model: str | None = None) -> LaunchPlan:
    """The text as a model, a served name, a flag's value and a variable's."""
    return LaunchPlan(
        argv=(
            "vllm", "serve", model_argument(word if model is None else model), "--max-model-len", "32k",
            f"--tokenizer={word}", f"--served-model-name={word}",
        ),
        env=(("VLLM_X", word),), gpus_per_node=2, nodes=nodes, vllm_version="0.26.0", peer_access=False,
    )  # fmt: skip


def undoubled(text: str) -> str:
    """What Compose and Kubernetes make of `$$`; a single `$` would be an expansion."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


@WORDS
def test_serve(sandbox, word):
    plan = plan_of(word)
    assert sandbox.shell(render("serve", plan)) == [("vllm", list(plan.argv[1:]), word)]


@WORDS
def test_docker(sandbox, word):
    plan = plan_of(word)
    ((program, words, _),) = sandbox.shell(render("docker", plan))
    image = words.index("vllm/vllm-openai:v0.26.0")
    before, after = words[:image], words[image + 1 :]
    model = "/model" if plan.is_local else plan.model
    assert program == "docker"
    assert after == ["serve", model, *plan.argv[3:]]
    assert before[:6] == ["run", "--rm", "--gpus", "2", "--ipc=host", "--publish"]
    storage = (
        ["--mount", f"type=bind,source={plan.folder},target=/model,readonly"]
        if plan.is_local
        else ["--volume", "/home/someone/.cache/huggingface:/root/.cache/huggingface", "--env", "HF_TOKEN"]
    )
    if plan.is_local and storage[1] not in before:
        storage[1] = f'type=bind,"source={plan.folder.replace(chr(34), chr(34) * 2)}",target=/model,readonly'
    assert before[7:] == [
        *storage, "--env", f"VLLM_X={word}", "--env", "NCCL_P2P_DISABLE=1", "--entrypoint", "vllm",
    ]  # fmt: skip


@WORDS
def test_several_machines(sandbox, word):
    plan = plan_of(word, nodes=2)
    head = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "192.0.2.1", "--master-port", "29501"]
    assert sandbox.shell(render("multinode", plan)) == [
        ("vllm", [*plan.argv[1:], *head], word),
        ("vllm", [*plan.argv[1:], *head[:3], "1", *head[4:], "--headless"], word),
    ]
    assert sandbox.shell(render("ray", plan)) == [
        ("ray", ["start", "--head", "--port=6379"], ""),
        ("ray", ["start", "--address=192.0.2.1:6379"], ""),
        ("vllm", [*plan.argv[1:], "--distributed-executor-backend", "ray"], word),
    ]


@WORDS
def test_xinference(sandbox, word):
    plan = plan_of(word)
    calls = sandbox.shell(render("xinference", plan))
    assert [call[0] for call in calls] == ["xinference-local", "xinference"]
    assert calls[0][1:] == (["--host", "0.0.0.0", "--port", "9997"], word)
    words = calls[1][1]
    assert words[0] == "launch"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    own = {"--model-engine", "--model-name", "--model-format", "--quantization", "--n-gpu", "--trust-remote-code"}
    given = {"--max_model_len": "32000", "--tokenizer": word, "--served_model_name": word}
    assert options.keys() - {"--size-in-billions", "--model-path"} == own | given.keys()
    assert options.items() >= given.items()
    if plan.is_local:
        assert options["--model-path"] == plan.folder


@WORDS
def test_download(sandbox, word):
    plan = plan_of(word, model=f"org/{word}")
    calls = sandbox.shell(render("download", plan))
    assert [call[0] for call in calls] == ["hf", "hf", "modelscope"]
    assert all(call[1].count(f"org/{word}") == 1 for call in calls)


@WORDS
def test_python(sandbox, word):
    plan = plan_of(word)
    values = {"model": plan.model, "max_model_len": 32000, "tokenizer": word, "served_model_name": [word]}
    assert sandbox.python(render("python", plan)) == (values, word)


@WORDS
def test_compose(word):
    plan = plan_of(word)
    document = yaml.safe_load(render("compose", plan))
    assert set(document) <= {"services", "volumes"}
    ((name, service),) = document["services"].items()
    assert name == plan.name
    model = "/model" if plan.is_local else plan.model
    assert [undoubled(item) for item in service["command"]] == ["serve", model, *plan.argv[3:]]
    assert undoubled(service["environment"]["VLLM_X"]) == word
    assert service["environment"].keys() - {"HF_TOKEN"} == {"VLLM_X", "NCCL_P2P_DISABLE"}
    assert service["image"] == "vllm/vllm-openai:v0.26.0"
    if plan.is_local:
        assert undoubled(service["volumes"][0]["source"]) == plan.folder


@WORDS
def test_kubernetes(word):
    plan = plan_of(word)
    deployment, service = yaml.safe_load_all(render("kubernetes", plan))
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    model = "/model" if plan.is_local else plan.model
    assert [undoubled(item) for item in container["args"]] == ["serve", model, *plan.argv[3:]]
    variables = {item["name"]: item.get("value") for item in container["env"]}
    assert undoubled(variables["VLLM_X"]) == word
    assert variables.keys() - {"HF_TOKEN"} == {"VLLM_X", "NCCL_P2P_DISABLE"}
    assert "privileged" not in render("kubernetes", plan).replace(word, "")
    if plan.is_local:
        assert pod["volumes"][1]["hostPath"] == {"path": plan.folder, "type": "Directory"}


FOLDERS = {name: word for name, word in HOSTILE.items() if "/" not in word and len(word) < 200 and word != "."}


@pytest.mark.parametrize("name", FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_of_that_name(sandbox, tmp_path: Path, name):
    folder = tmp_path / name
    folder.mkdir()
    plan = plan_of("x", model=str(folder))
    assert plan.is_local
    assert sandbox.shell(render("serve", plan))[0][1][:2] == ["serve", str(folder)]
    ((_, words, _),) = sandbox.shell(render("docker", plan))
    assert str(folder).replace('"', '""') in words[words.index("--mount") + 1]
    assert words[words.index("serve") + 1] == "/model"
    assert sandbox.python(render("python", plan))[0]["model"] == str(folder)
    (composed,) = yaml.safe_load(render("compose", plan))["services"].values()
    assert undoubled(composed["volumes"][0]["source"]) == str(folder)
    pod = next(yaml.safe_load_all(render("kubernetes", plan)))["spec"]["template"]["spec"]
    assert pod["volumes"][1]["hostPath"]["path"] == str(folder)


@REFUSALS
@pytest.mark.parametrize("form", FORMS)
def test_what_no_form_carries_is_refused_in_visible_text(form, word):
    nodes = 2 if form in ("multinode", "ray") else 1
    plans = [
        plan_of(word, nodes=nodes),
        plan_of("x", nodes=nodes, model=f"org/{word}"),
        plan_of("x", nodes=nodes).model_copy(update={"env": (("VLLM_X", word),)}),
        plan_of("x", nodes=nodes).model_copy(update={"vllm_version": f"0.26.0{word}"}),
    ]
    for plan in plans:
        with pytest.raises(InputError, match=r"U\+[0-9A-F]{4}") as refused:
            render(form, plan)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["X;touch canary;Y", "$(touch canary)", "X Y", "", "1X", "X-Y", "X\n", "é"])
def test_what_is_no_name_of_a_variable_is_refused(form, name):
    nodes = 2 if form in ("multinode", "ray") else 1
    plan = plan_of("x", nodes=nodes).model_copy(update={"env": ((name, "1"),)})
    with pytest.raises(InputError, match="not the name of an environment variable"):
        render(form, plan)
    with pytest.raises(InputError, match="not the name of an environment variable"):
        shell_command(["vllm"], {name: "1"})


@pytest.mark.parametrize("port", ["0", "65536", "9" * 5000, "٣٣٣", "x", "-1", "80 -v /:/host"])
def test_the_published_port_is_one(sandbox, port):
    plan = LaunchPlan(argv=("vllm", "serve", "org/name", f"--port={port}"), vllm_version="0.26.0")
    ((_, words, _),) = sandbox.shell(render("docker", plan))
    published = words[words.index("--publish") + 1]
    assert published in ("8000:8000", "333:333")
