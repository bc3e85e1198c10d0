"""Pasted launch commands."""

import pytest

from planner.errors import InputError, UnsupportedError
from planner.serve.parse import RefusedCommand, check_command, parse_command


def given(text, **keywords):
    parsed = parse_command(text, **keywords)
    return {name: getattr(parsed.args, name) for name in parsed.given}


def test_vllm_serve_with_environment_continuations_and_redirection():
    parsed = parse_command(
        "VLLM_USE_V2_MODEL_RUNNER=0 vllm serve Qwen/Qwen2.5-7B-Instruct \\\n  -tp 2 --max_model_len=32k \\\n"
        "  --served-model-name 'my model' --port 8001 > log.txt 2>&1 &"
    )
    assert parsed.model == "Qwen/Qwen2.5-7B-Instruct"
    assert parsed.args.tensor_parallel_size == 2
    assert parsed.args.max_model_len == 32000
    assert parsed.given == ("max_model_len", "tensor_parallel_size")
    assert parsed.args.env == (("VLLM_USE_V2_MODEL_RUNNER", "0"),)
    assert parsed.extra == ("--served-model-name", "my model", "--port", "8001")


@pytest.mark.parametrize(
    "text",
    [
        "python -m vllm.entrypoints.openai.api_server --model a/b --max-num-seqs 4",
        "/opt/bin/python3.11 -u -m vllm.entrypoints.openai.api_server --max-num-seqs=4 --model=a/b",
        "sudo -E nohup vllm serve a/b --max-num-seqs 4",
        "vllm serve --model a/b --max-num-seqs 4",
        "docker run --gpus all -it --rm -p8000:8000 -v ~/c:/c --ipc=host vllm/vllm-openai --model a/b --max-num-seqs 4",
        "docker run --gpus all --entrypoint vllm vllm/vllm-openai serve a/b --max-num-seqs 4",
        "podman run --entrypoint=/bin/bash my/image -c 'vllm serve a/b --max-num-seqs 4'",
        "cd /models && source venv/bin/activate; vllm serve a/b --max-num-seqs 4 | tee log",
        "MODEL=a/b\nvllm serve $MODEL --max-num-seqs ${SEQS:-4}",
        "# a comment\nexport SEQS=4\nvllm serve 'a/b' --max-num-seqs \"$SEQS\"  # another",
    ],
)
def test_every_way_to_start_the_same_server(text):
    parsed = parse_command(text)
    assert parsed.model == "a/b"
    assert parsed.args.max_num_seqs == 4
    assert parsed.given == ("max_num_seqs",)


def test_image_tag_names_the_release():
    parsed = parse_command("docker run -e VLLM_X=1 vllm/vllm-openai:v0.33.0 a/b --no-enable-prefix-caching")
    assert parsed.vllm_version == parsed.image_version == "0.33.0"
    assert parsed.args.env == (("VLLM_X", "1"),)
    assert parse_command("docker run vllm/vllm-openai:v0.33.0 a/b", "0.26.0").vllm_version == "0.26.0"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--max-model-len 32K", {"max_model_len": 32768}),
        ("--max-model-len auto", {"max_model_len": -1}),
        ("--kv-cache-memory 4G", {"kv_cache_memory_bytes": 4 << 30}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        (
            "--limit-mm-per-prompt.image 2 --limit-mm-per-prompt.video=0",
            {"limit_mm_per_prompt": '{"image": 2, "video": 0}'},
        ),
        ("""--limit-mm-per-prompt '{"image":2}'""", {"limit_mm_per_prompt": '{"image":2}'}),
        ("--quantization None", {}),
        ("-q awq --trust_remote_code", {"quantization": "awq", "trust_remote_code": True}),
        (
            "--spec-method ngram --spec-tokens 3",
            {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 3}'},
        ),
        ("--enforce-eager --cpu-offload-gb 0 -O2", {"enforce_eager": True}),
    ],
)
def test_values_as_vllm_reads_them(flags, expected):
    assert given(f"vllm serve m {flags}") == expected


@pytest.mark.parametrize(
    ("flags", "sentence", "fix"),
    [
        ("--swap-space 16", "unrecognized arguments: --swap-space 16", "recomputed"),
        (
            "--limit-mm-per-prompt image=5",
            "argument --limit-mm-per-prompt: Value image=5 cannot",
            """--limit-mm-per-prompt '{"image": 5}'""",
        ),
        ("--tensor-parallel-size 0", "tensor_parallel_size: Input should be greater", None),
        ("--block-size", "argument --block-size: expected one argument", None),
        ("--max-num 4", "ambiguous option: --max-num could match", None),
        (
            """--spec-method ngram --speculative-config '{"method": "ngram"}'""",
            "--spec-method and --speculative-config['method'] are",
            None,
        ),
    ],
)
def test_what_vllm_refuses(flags, sentence, fix):
    with pytest.raises(RefusedCommand) as refused:
        parse_command(f"vllm serve m {flags}")
    rejection = refused.value.rejection
    assert rejection.bottleneck == "flag"
    assert rejection.message.startswith(sentence)
    assert fix is None or any(fix in item for item in rejection.fix)


def test_refusal_depends_on_the_release():
    parse_command("vllm serve m --calculate-kv-scales --no-calculate-kv-scales", "0.26.0")
    with pytest.raises(RefusedCommand) as refused:
        parse_command("vllm serve m --calculate-kv-scales", "0.33.0")
    assert refused.value.model == "m"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--cpu-offload-gb 10", "--cpu-offload-gb"),
        ("--config file.yaml", "--config"),
        ("-O3", "--optimization-level"),
        ("--load-format bitsandbytes", "--load-format"),
        ("--distributed-executor-backend ray", "--distributed-executor-backend"),
        ("--enable-sleep-mode", "--enable-sleep-mode"),
        ("--kv-transfer-config '{}'", "--kv-transfer-config"),
    ],
)
def test_options_that_change_memory_unseen_are_unsupported(flags, part):
    with pytest.raises(UnsupportedError) as refused:
        parse_command(f"vllm serve m {flags}")
    assert refused.value.part == part


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ls -l",
        "echo vllm serve m",
        "vllm serve 'm",
        'vllm serve "m',
        "vllm serve $MODEL",
        "vllm serve m --max-model-len $(cat len)",
        "VLLM_USE_V2_MODEL_RUNNER=$X vllm serve m",
        "vllm serve a; vllm serve b",
        "docker run --gpus",
        "python -m sglang.launch_server --model m",
        "xinference launch qwen",
    ],
)
def test_text_without_one_readable_launch_is_bad_input(text):
    with pytest.raises(InputError):
        parse_command(text)


def test_expansions_that_do_not_matter_are_told():
    parsed = parse_command('docker run -e "HF_TOKEN=$HF_TOKEN" vllm/vllm-openai m --api-key $KEY')
    assert parsed.args.env == ()
    assert len(parsed.warnings) == 2


def test_xinference_brings_its_own_defaults():
    parsed = parse_command(
        "xinference launch --model-engine vLLM -n qwen2.5-vl-instruct -s 7 -f pytorch --n-gpu 2 --max_model_len 8192 "
        "--max_pixels 1003520 --model-path /m/q --enforce_eager True"
    )
    assert parsed.model == "/m/q"
    assert {name: getattr(parsed.args, name) for name in parsed.given} == {
        "block_size": 16,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 8192,
        "max_num_seqs": 256,
        "mm_processor_kwargs": '{"max_pixels": 1003520}',
        "tensor_parallel_size": 2,
        "trust_remote_code": True,
    }
    with pytest.raises(UnsupportedError):
        parse_command("xinference launch --model-engine sglang -n qwen")
    with pytest.raises(RefusedCommand):
        parse_command("xinference launch -n qwen")


def test_check_lists_every_problem():
    argv = [
        "VLLM_USE_V1=1",
        "vllm",
        "serve",
        "m",
        "--dtype",
        "fp16",
        "--enable-auto-tool-choice",
        "--disable-log-requests",
    ]
    messages = [problem.message for problem in check_command(argv)]
    assert messages[0].startswith("argument --dtype: invalid choice: 'fp16'")
    assert messages[1] == "unrecognized arguments: --disable-log-requests"
    assert messages[2] == "Error: --enable-auto-tool-choice requires --tool-call-parser"
    assert messages[3] == "Unknown vLLM environment variable detected: VLLM_USE_V1"
    assert check_command(["vllm", "serve", "m", "--port", "80"]) == ()
