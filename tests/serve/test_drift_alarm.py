"""scripts/check_drift.py from end to end on a small vLLM of its own: one fact changed is caught and named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

FILES = {
    "_version.py": "version = '9.8.7'\n",
    "engine/arg_utils.py": """
def _compute_kwargs(cls):
    human_readable_int_args = {"max_model_len"}
    if field_type is None:
        kwargs["choices"].append("None")


@dataclass
class AsyncEngineArgs:
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int = 256

    @staticmethod
    def add_cli_args(parser):
        kwargs = get_kwargs(AsyncEngineArgs)
        group = parser.add_argument_group()
        group.add_argument("--gpu-memory-utilization", **kwargs["gpu_memory_utilization"])
        group.add_argument("--max-num-seqs", **kwargs["max_num_seqs"])
        return parser
""",
    "entrypoints/openai/cli_args.py": """
from vllm.engine.arg_utils import AsyncEngineArgs


def make_arg_parser(parser):
    parser.add_argument("--headless", action="store_true", default=False)
    parser = AsyncEngineArgs.add_cli_args(parser)
    return parser
""",
    "utils/argparse_utils.py": "class FlexibleArgumentParser: ...\n",
    "config/cache.py": 'from typing import Literal\nCacheDType = Literal["auto", "fp8"]\n',
    "config/vllm.py": 'DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES = {"AForCausalLM"}\n',
    "model_executor/layers/quantization/__init__.py": (
        'from typing import Literal\nQuantizationMethods = Literal["awq", "gptq"]\n'
        'DEPRECATED_QUANTIZATION_METHODS = ["tpu_int8"]\n'
    ),
    "model_executor/models/registry.py": '_PREVIOUSLY_SUPPORTED_MODELS = {"OldForCausalLM": "0.1"}\n',
    "v1/worker/gpu_worker.py": '''
class Worker:
    def determine_available_memory(self):
        """What is left."""
        left = self.requested_memory - self.non_kv_cache_memory
        logger.info("Available KV cache memory: %s GiB", left)
        return left
''',
}
PLANNER = '''"""The budget.

Source: vLLM 0.26.0 v1/worker/gpu_worker.py:5 determine_available_memory.
"""
'''
CHANGES = {
    "nothing": ("_version.py", "9.8.7", "9.8.7", None),
    "words and layout": ("v1/worker/gpu_worker.py", '"""What is left."""', '"""The rest."""  # new', None),
    "a default": (
        "engine/arg_utils.py", "= 0.92", "= 0.9", "- `--gpu-memory-utilization` default: `0.92` became `0.9`",
    ),
    "a flag": (
        "entrypoints/openai/cli_args.py", '"--headless"', '"--bodiless"', "- `--headless`",
    ),
    "an enum": ("config/cache.py", '"fp8"', '"fp8", "nvfp4"', "- added: `nvfp4`"),
    "a quantization": ("model_executor/layers/quantization/__init__.py", ', "gptq"', "", "- gone: `gptq`"),
    "an architecture": ("config/vllm.py", "AFor", "BFor", "- gone: `AForCausalLM`"),
    "a removed architecture": ("model_executor/models/registry.py", "OldFor", "OlderFor", "- gone: `OldForCausalLM`"),
    "a log line": (
        "v1/worker/gpu_worker.py", "Available KV cache memory: %s GiB", "KV cache: %s",
        "- `Available KV cache memory: {} GiB`",
    ),
    "a formula": (
        "v1/worker/gpu_worker.py", "self.requested_memory - ", "self.requested_memory + ",
        "- `v1/worker/gpu_worker.py::Worker.determine_available_memory`, cited by `planner/budget.py`",
    ),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with the scripts, one planner file that cites the small vLLM, and facts recorded from that."""
    (tmp_path / "scripts").mkdir()
    for name in ("check_drift.py", "generate_vllm_flags.py", "vllm_source.py"):
        (tmp_path / "scripts" / name).write_text((SCRIPTS / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "planner" / "releases").mkdir(parents=True)
    for name in ("__init__.py", "releases/__init__.py"):
        (tmp_path / "planner" / name).write_text("")
    (tmp_path / "planner" / "releases" / "flags.py").write_text(
        "from typing import Any, NamedTuple\n"
        "Flag = NamedTuple('Flag', [(n, Any) for n in "
        "('options', 'negatives', 'dest', 'arity', 'kind', 'choices', 'default', 'engine')])\n"
    )
    (tmp_path / "planner" / "releases" / "known.py").write_text("RELEASES = ()\n")
    (tmp_path / "planner" / "budget.py").write_text(PLANNER)
    for file, text in FILES.items():
        (tmp_path / "vllm" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vllm" / file).write_text(text)
    done = run(tmp_path, "--record")
    assert done.returncode == 0, done.stderr
    return tmp_path


def run(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(place / "scripts" / "check_drift.py"), str(place / "vllm"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def items(report: str) -> list[str]:
    """What the report lists, without what the release that is not in the planner's table would get."""
    before, _, _ = report.partition("## The planner's own entry")
    return [line for line in before.splitlines() if line.startswith("- ")]


def test_facts_are_those_of_the_tree(place: Path) -> None:
    facts = json.loads((place / "scripts" / "drift_facts.json").read_text())
    assert facts["version"] == "9.8.7"
    assert list(facts["flags"]) == ["headless", "gpu_memory_utilization", "max_num_seqs"]
    assert facts["names"]["cache dtypes"] == ["auto", "fp8"]
    assert [line for line, present in facts["log_lines"].items() if present] == ["Available KV cache memory: {} GiB"]
    assert list(facts["pieces"]) == ["v1/worker/gpu_worker.py::Worker.determine_available_memory"]


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_caught(place: Path, change: str) -> None:
    file, old, new, wanted = CHANGES[change]
    path = place / "vllm" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    done = run(place)
    assert done.returncode == 1, done.stderr
    found = items(done.stdout)
    if wanted is None:
        assert found == []
    else:
        assert wanted in found
