"""Manifests against the schemas that their readers publish, with hostile model names in them."""

import compose_spec
import kubernetes_validate
import pytest
import yaml

from planner.serve.launch import LaunchPlan, render

NAMES = (
    "Qwen/Qwen2.5-7B-Instruct",
    "org/$(touch owned)",
    "org/`id`;${HOME} && rm -rf x",
    'org/"quoted" it\'s',
    "org/two words: - {a: b}",
    "org/line\nbreak",
    "no",
    "0x1F",
    "org/日本語",
    "-".join(["long"] * 40),
)


def plan_of(model, **fields):
    argv = ("vllm", "serve", model, "--tensor-parallel-size", "2", "--max-model-len", "8192")
    return LaunchPlan(argv=argv, gpus_per_node=2, vllm_version="0.26.0", **fields)


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("peer_access", [True, False])
def test_compose_is_a_compose_file(model, peer_access):
    text = render("compose", plan_of(model, peer_access=peer_access, env=(("HF_HOME", "a$b: c"),)))
    parsed = compose_spec.PyCompose.from_yaml(text)
    parsed.validate()
    (service,) = parsed.services.values()
    assert service.image == "vllm/vllm-openai:v0.26.0"


def test_the_compose_schema_refuses_what_is_none():
    text = render("compose", plan_of("org/name")).replace("ipc: host", "ipc: [host]")
    with pytest.raises(ValueError, match="ipc"):
        compose_spec.PyCompose.from_yaml(text)


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_kubernetes_is_valid_for_the_api(model, version):
    plan = plan_of(model, source="modelscope", env=(("HF_HOME", "a$(b): c"),))
    for document in yaml.safe_load_all(render("kubernetes", plan)):
        kubernetes_validate.validate(document, version, strict=True)
        assert len(document["metadata"]["name"]) <= 63


def test_a_folder_is_valid_for_the_api(tmp_path):
    (tmp_path / "a, 'b' $c").mkdir()
    for document in yaml.safe_load_all(render("kubernetes", plan_of(str(tmp_path / "a, 'b' $c")))):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_kubernetes_schema_refuses_what_is_none():
    deployment = next(yaml.safe_load_all(render("kubernetes", plan_of("org/name"))))
    deployment["spec"]["template"]["spec"]["containers"][0]["gpus"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("model", NAMES)
def test_shell_forms_carry_the_model_as_one_word(shell, model):
    assert [call[1][:2] for call in shell(render("serve", plan_of(model)))] == [["serve", model]]
    ((_, docker, _),) = shell(render("docker", plan_of(model)))
    assert docker[docker.index("serve") + 1] == model
    two = plan_of(model, nodes=2)
    assert [call[1][:2] for call in shell(render("multinode", two))] == [["serve", model]] * 2
    assert [call[1][:2] for call in shell(render("ray", two)) if call[0] == "vllm"] == [["serve", model]]
    assert all(model in call[1] for call in shell(render("download", plan_of(model))))
    xinference = [call for call in shell(render("xinference", plan_of(model))) if call[0] == "xinference"]
    assert len(xinference) == 1
