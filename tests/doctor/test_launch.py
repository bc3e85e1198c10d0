"""The launch in a log: as somebody typed it, or as vLLM printed it; and changes to its words."""

from __future__ import annotations

import shlex

import pytest

from planner.doctor.edits import CommandWords
from planner.doctor.failure import Edit, drop, fill, put
from planner.doctor.figures import fill_in, with_derived
from planner.doctor.launch import LoggedLaunch, logged_launch
from planner.doctor.log import read_log


def launch(text: str) -> LoggedLaunch:
    return logged_launch(read_log(text))


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("$ vllm serve M --max-model-len 4096\nINFO ...", "vllm serve M --max-model-len 4096"),
        (
            "CUDA_VISIBLE_DEVICES=1,5 \\\nvllm serve M \\\n  --port 1\nINFO",
            "CUDA_VISIBLE_DEVICES=1,5 vllm serve M --port 1",
        ),
        (
            "root@x:/a# python -m vllm.entrypoints.openai.api_server --model M",
            "python -m vllm.entrypoints.openai.api_server --model M",
        ),
        ("I ran `vllm serve M -tp 2` and", ""),
        ("vllm serve: error: argument --x", ""),
        (
            "docker run --gpus all vllm/vllm-openai:v0.9.0 --model M",
            "docker run --gpus all vllm/vllm-openai:v0.9.0 --model M",
        ),
        ("vllm serve M --json '{unclosed", ""),
    ],
)
def test_a_typed_command_is_found(text: str, command: str) -> None:
    assert launch(text).command == command


def test_printed_arguments_make_a_command() -> None:
    text = (
        "(APIServer pid=4) INFO 08-15 14:56:15 [utils.py:273] non-default args: {'model_tag': 'M', 'model': 'M', "
        "'tensor_parallel_size': 3, 'attention_config': AttentionConfig(backend=None), 'trust_remote_code': True, "
        "'limit_mm_per_prompt': {'image': 2}}"
    )
    words = shlex.split(launch(text).command)
    assert words[:5] == ["vllm", "serve", "M", "--tensor-parallel-size", "3"]
    assert words[5:] == ["--limit-mm-per-prompt", '{"image": 2}', "--trust-remote-code"]


def test_a_namespace_and_an_engine_line_are_read_without_their_defaults() -> None:
    namespace = (
        "INFO 10-10 10:22:07 api_server.py:526] vLLM API server version 0.6.4\n"
        "INFO 10-10 10:22:07 api_server.py:527] args: Namespace(model_tag='M', config='', port=8000, "
        "config_format=<ConfigFormat.AUTO: 'auto'>, load_format=LoadFormat.AUTO, gpu_memory_utilization=0.9, "
        "max_num_seqs=64, "
        "dtype='auto', dispatch_function=<function serve at 0x7>, quantization='awq', model='M')"
    )
    found = launch(namespace)
    assert found.version == "0.6.4"
    assert found.command in ("", "vllm serve M --max-num-seqs 64 --quantization awq")
    engine = (
        "Initializing a V1 LLM engine (v0.9.2) with config: model='M', dtype=torch.bfloat16, max_seq_len=4096, "
        "tensor_parallel_size=2, quantization=awq, enforce_eager=True, kv_cache_dtype=auto"
    )
    found = launch(engine)
    assert found.arguments == {
        "model": "M", "dtype": "bfloat16", "max_model_len": 4096, "tensor_parallel_size": 2, "quantization": "awq",
        "enforce_eager": True,
    }  # fmt: skip


def test_the_card_is_read() -> None:
    assert launch("Your Tesla T4 GPU has compute capability 7.5.").card == "Tesla T4"
    assert launch("GPU 0: NVIDIA A100-SXM4-80GB\nGPU 1: NVIDIA A100-SXM4-80GB").card == "NVIDIA A100-SXM4-80GB"
    assert launch("|   0  Tesla T4                       Off | 00000001:00:00.0 Off |").card == "Tesla T4"


@pytest.mark.parametrize(
    ("command", "edit", "expected"),
    [
        ("vllm serve M -tp 4", put("--tensor-parallel-size", "2"), "vllm serve M --tensor-parallel-size 2"),
        (
            "vllm serve M --max_model_len=9 --port 1",
            put("--max-model-len", "5"),
            "vllm serve M --port 1 --max-model-len 5",
        ),
        ("vllm serve --enforce-eager M", drop("--enforce-eager"), "vllm serve M"),
        ("vllm serve M -q awq --port 1", drop("--quantization"), "vllm serve M --port 1"),
        ("vllm serve M --limit-mm-per-prompt.image 2", drop("--limit-mm-per-prompt"), "vllm serve M"),
        ("vllm serve M --max-num-seqs 4", fill("--max-num-seqs", "8"), "vllm serve M --max-num-seqs 4"),
        ("vllm serve M", Edit("env", "A", "b"), "A=b vllm serve M"),
        ("A=c vllm serve M", Edit("env", "A", "b"), "A=b vllm serve M"),
        ("docker run --gpus all vllm/x M", Edit("env", "A", "b"), "docker run -e A=b --gpus all vllm/x M"),
        (
            "vllm serve M --tp 2 --disable-log-requests",
            Edit("rename", "--tp --disable-log-requests"),
            "vllm serve M --tensor-parallel-size 2",
        ),
        ("vllm serve M --swap-space 8 --seed 1", Edit("rename", "--swap-space 8"), "vllm serve M --seed 1"),
        (
            "vllm serve M --reasoning-parser r --omni",
            Edit("rename", "--omni --reasoning-parser r"),
            "vllm serve M --reasoning-parser r",
        ),
        (
            "xinference launch --model-engine vLLM --a-b 5",
            Edit("rename", "--a-b", "--a_b"),
            "xinference launch --model-engine vLLM --a_b 5",
        ),
        ("xinference launch -en vLLM", put("--max-model-len", "5"), "xinference launch -en vLLM --max_model_len 5"),
        ("xinference launch -en vLLM", put("--enforce-eager", ""), "xinference launch -en vLLM --enforce_eager true"),
    ],
)
def test_edits(command: str, edit: Edit, expected: str) -> None:
    words = CommandWords(command.split(), "0.26.0")
    words.apply((edit,), {})
    assert " ".join(words.words) == expected


def test_an_edit_without_its_figure_is_left_out() -> None:
    words = CommandWords(["vllm", "serve", "M"], "0.26.0")
    assert not words.apply((put("--max-model-len", "{max_len_fit}"),), {})
    assert words.apply((put("--max-model-len", "{max_len_fit}"),), {"max_len_fit": "64"})
    assert fill_in("{a} {b}", {"a": "1"}) is None


@pytest.mark.parametrize(
    ("figures", "options", "name", "value"),
    [
        ({"free_gib": "31.44", "total_gib": "47.38"}, {}, "utilization_free", "0.66"),
        (
            {"max_len": "262144", "need_gib": "24.0", "have_gib": "3.18", "estimated": "34736"},
            {},
            "max_len_fit",
            "34736",
        ),
        ({"max_len": "1048576", "need_gib": "24.00", "have_gib": "9.97"}, {}, "max_len_fit", "435584"),
        ({"max_len": "32768", "cache_tokens": "7344"}, {}, "max_len_fit", "7344"),
        ({"heads": "28", "tp": "8"}, {}, "tp_fit", "4"),
        ({"heads": "40", "tp": "6"}, {}, "tp_fit", "4"),
        ({"heads": "15", "tp": "8"}, {}, "tp_fit", "5"),
        ({"limits": "image=5,video=5"}, {}, "limits_json", '{"image": 5, "video": 5}'),
        ({"dummy_seqs": "1024"}, {}, "max_num_seqs_lower", "256"),
        ({}, {"max_num_seqs": 64}, "max_num_seqs_lower", "32"),
        ({"item_tokens": "2496"}, {}, "item_tokens_rounded", "2560"),
    ],
)
def test_derived_figures(figures: dict[str, str], options: dict[str, int], name: str, value: str) -> None:
    assert with_derived(figures, LoggedLaunch(), options)[name] == value
