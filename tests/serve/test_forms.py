"""Every launch form carries the plan's words unchanged, whatever is in them."""

import ast
import py_compile

import pytest
import yaml

from planner.errors import InputError, UnsupportedError
from planner.serve.launch import FORMS, LaunchPlan, render

HOSTILE = [
    "plain",
    "two words",
    'it\'s "quoted"',
    "$(touch owned)",
    "`touch owned`",
    "${HOME} $HOME $$ $(HOME)",
    "a;touch owned & | > owned",
    "line\nbreak\ttab",
    "\\back\\slash\\",
    "日本語 é 🚀",
    "{a,b}*?[x]~!#",
    "--looks-like=an-option",
    "yes",
    "1e3",
    ": - {}",
]


def plan_of(word, **keywords):
    argv = ("vllm", "serve", "org/name", "--tensor-parallel-size", "2", f"--served-model-name={word}")
    return LaunchPlan(argv=argv, env=(("VLLM_X", word),), gpus_per_node=2, vllm_version="0.26.0", **keywords)


@pytest.mark.parametrize("word", HOSTILE)
def test_serve_runs_with_exactly_these_words(shell, word):
    plan = plan_of(word)
    assert shell(render("serve", plan)) == [
        ["vllm", list(plan.argv[1:]), {"VLLM_X": word, "HF_ENDPOINT": None, "VLLM_WORKER_MULTIPROC_METHOD": None}]
    ]


@pytest.mark.parametrize("word", HOSTILE)
def test_docker_gets_the_command_after_the_image(shell, word):
    plan = plan_of(word)
    ((_, argv, _),) = shell(render("docker", plan))
    image = argv.index("vllm/vllm-openai:v0.26.0")
    assert argv[image + 1 :] == list(plan.argv[1:])
    assert argv[argv.index("--gpus") + 1] == "2"
    assert f"VLLM_X={word}" in argv
    assert "/home/someone/.cache/huggingface:/root/.cache/huggingface" in argv


@pytest.mark.parametrize("word", HOSTILE)
def test_several_machines_run_the_same_words(shell, word):
    plan = plan_of(word, nodes=2)
    calls = shell(render("multinode", plan))
    head = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "192.0.2.1", "--master-port", "29501"]
    assert [argv for _, argv, _ in calls] == [
        [*plan.argv[1:], *head],
        [*plan.argv[1:], *head[:3], "1", *head[4:], "--headless"],
    ]
    started = [argv for name, argv, _ in shell(render("ray", plan)) if name == "vllm"]
    assert started == [[*plan.argv[1:], "--distributed-executor-backend", "ray"]]


@pytest.mark.parametrize("word", HOSTILE)
def test_manifests_read_back(word):
    plan = plan_of(word)
    (service,) = yaml.safe_load(render("compose", plan))["services"].values()
    assert [undouble(item) for item in service["command"]] == list(plan.argv[1:])
    assert undouble(service["environment"]["VLLM_X"]) == word
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    deployment, exposed = yaml.safe_load_all(render("kubernetes", plan))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert [undouble(item) for item in container["args"]] == list(plan.argv[1:])
    assert undouble(container["env"][0]["value"]) == word
    assert exposed["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def undouble(text):
    """What Compose and Kubernetes make of `$$`; a single `$` would be an expansion."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


def test_kubernetes_has_what_the_engine_needs():
    deployment, service = yaml.safe_load_all(render("kubernetes", plan_of("x")))
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert pod["enableServiceLinks"] is False
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["shm"] == "/dev/shm"
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
    names = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
        assert container[probe]["httpGet"]["port"] in names
    assert service["spec"]["ports"][0]["targetPort"] in names


@pytest.mark.parametrize("form", ["docker", "compose", "kubernetes"])
def test_a_folder_is_mounted_read_only(tmp_path, shell, form):
    folder = tmp_path.parent / "a, 'b' $c"
    folder.mkdir(exist_ok=True)
    plan = LaunchPlan(argv=("vllm", "serve", str(folder), "--port", "9000"), vllm_version="0.26.0")
    text = render(form, plan)
    if form == "docker":
        ((_, argv, _),) = shell(text)
        assert argv[argv.index("--mount") + 1] == f'type=bind,"source={folder}",target=/model,readonly'
        assert argv[-4:] == ["serve", "/model", "--port", "9000"]
        assert "9000:9000" in argv
    elif form == "compose":
        (service,) = yaml.safe_load(text)["services"].values()
        assert undouble(service["volumes"][0]["source"]) == str(folder)
        assert service["command"] == ["serve", "/model", "--port", "9000"]
    else:
        pod = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]
        assert pod["volumes"][1]["hostPath"]["path"] == str(folder)
        assert pod["containers"][0]["ports"][0]["containerPort"] == 9000


@pytest.mark.parametrize("word", HOSTILE)
def test_python_form_is_a_program_with_literal_arguments(tmp_path, word):
    argv = (
        "vllm", "serve", word, f"--tokenizer={word}", "--max-model-len", "32k", "--enforce-eager",
        "--limit-mm-per-prompt", '{"image": 2}', "--gpu-memory-utilization", "0.9", "--port", "80",
    )  # fmt: skip
    if word.startswith("-"):
        argv = ("vllm", "serve", "./" + word, *argv[3:])
    plan = LaunchPlan(argv=argv, env=(("VLLM_X", word),), vllm_version="0.26.0")
    text = render("python", plan)
    program = tmp_path / "program.py"
    program.write_text(text, encoding="utf-8")
    py_compile.compile(str(program), doraise=True)
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if getattr(node.func, "id", "") == "LLM"]
    assert {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords} == {
        "model": argv[2],
        "tokenizer": word,
        "max_model_len": 32000,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 2},
        "gpu_memory_utilization": 0.9,
    }
    assert "os.environ['VLLM_WORKER_MULTIPROC_METHOD'] = 'spawn'" in text
    assert f"os.environ['VLLM_X'] = {word!r}" in text


@pytest.mark.parametrize("word", HOSTILE)
def test_xinference_passes_engine_arguments_under_their_own_names(shell, word):
    argv = ("vllm", "serve", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "--max-model-len", "32k", "--enforce-eager",
            f"--tokenizer={word}", "--port", "80")  # fmt: skip
    plan = LaunchPlan(argv=argv, gpus_per_node=4, vllm_version="0.26.0")
    server, launch = shell(render("xinference", plan))
    assert server[2]["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert launch[0] == "xinference"
    options = dict(zip(launch[1][1::2], launch[1][2::2], strict=True))
    assert options == {
        "--model-engine": "vLLM",
        "--model-name": "qwen2.5-vl-instruct",
        "--size-in-billions": "72",
        "--model-format": "awq",
        "--quantization": "Int4",
        "--n-gpu": "4",
        "--max_model_len": "32000",
        "--enforce_eager": "True",
        "--tokenizer": word,
        "--trust-remote-code": "false",
    }


def test_xinference_is_given_the_folder_of_a_storage_it_does_not_list(shell):
    argv = ("vllm", "serve", "RedHatAI/DeepSeek-R1-Distill-Qwen-32B-quantized.w4a16", "--max-model-len", "8192")
    fetch, _, launch = shell(render("xinference", LaunchPlan(argv=argv, vllm_version="0.26.0")))
    assert fetch[:2] == ["hf", ["download", argv[2], "--local-dir", fetch[1][-1]]]
    options = dict(zip(launch[1][1::2], launch[1][2::2], strict=True))
    assert options["--model-name"] == "deepseek-r1-distill-qwen"
    assert (options["--model-format"], options["--quantization"]) == ("pytorch", "none")
    assert options["--model-path"].endswith("/" + fetch[1][-1])


def test_download_names_the_mirror_and_the_size(shell):
    text = render("download", plan_of("x", download_bytes=3 << 30))
    assert "3.00 GiB" in text
    calls = shell(text)
    assert [call[0] for call in calls] == ["hf", "hf", "modelscope"]
    assert [call[2]["HF_ENDPOINT"] for call in calls] == [None, "https://hf-mirror.com", None]
    assert all("org/name" in call[1] for call in calls)


def test_modelscope_and_cards_without_peer_access():
    plan = plan_of("x", source="modelscope", peer_access=False)
    for form in ("serve", "docker", "compose", "kubernetes", "python", "xinference"):
        text = render(form, plan)
        assert "VLLM_USE_MODELSCOPE" in text
        assert text.startswith("# These cards have no peer access")
        assert "NCCL_P2P_DISABLE" in text
    assert "NCCL_P2P_DISABLE" not in render("serve", plan_of("x"))
    kept = plan_of("x", peer_access=False).model_copy(update={"env": (("NCCL_P2P_DISABLE", "0"),)})
    assert kept.environment["NCCL_P2P_DISABLE"] == "0"


def test_cards_that_the_plan_leaves_are_left():
    plan = plan_of("x", node_gpus=8)
    for form in ("serve", "python", "xinference"):
        assert "CUDA_VISIBLE_DEVICES" in render(form, plan)
        assert "CUDA_VISIBLE_DEVICES" not in render(form, plan_of("x", node_gpus=2))
    for form in ("docker", "compose", "kubernetes"):
        assert "CUDA_VISIBLE_DEVICES" not in render(form, plan)
    assert plan.host_environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_forms_that_cannot_carry_the_plan():
    with pytest.raises(InputError):
        render("systemd", plan_of("x"))
    for form in set(FORMS) - {"multinode", "ray", "download"}:
        with pytest.raises(UnsupportedError):
            render(form, plan_of("x", nodes=2))
    for form in ("multinode", "ray"):
        with pytest.raises(UnsupportedError):
            render(form, plan_of("x"))
    parallel = LaunchPlan(argv=("vllm", "serve", "m", "--data-parallel-size", "2"), vllm_version="0.26.0")
    with pytest.raises(UnsupportedError):
        render("python", parallel)
    with pytest.raises(UnsupportedError, match="multinode"):
        render("ray", parallel.model_copy(update={"nodes": 2}))
    with pytest.raises(UnsupportedError):
        render("download", LaunchPlan(argv=("vllm", "serve", "/m"), vllm_version="0.26.0"))
