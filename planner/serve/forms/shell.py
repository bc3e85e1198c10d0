"""Launch forms that a POSIX shell reads. Every word that comes from a user or a model goes through shlex.quote."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable
from io import StringIO

from planner.errors import UnsupportedError
from planner.serve.command import shell_command
from planner.serve.launch import LaunchPlan, advice
from planner.units import format_bytes

CONTAINER_MODEL = "/model"


def serve(plan: LaunchPlan) -> str:
    """`NAME=VALUE vllm serve ...` on one line."""
    return _commented(advice(plan), shell_command(plan.argv, plan.host_environment))


def docker(plan: LaunchPlan) -> str:
    """`docker run` of vLLM's own image. --ipc=host: the ranks share memory through /dev/shm."""
    parts = [f"docker run --rm --gpus {plan.gpus_per_node} --ipc=host --publish {plan.port}:{plan.port}"]
    if plan.is_local:
        parts.append(
            "--mount "
            + shlex.quote(_csv("type=bind", f"source={plan.folder}", f"target={CONTAINER_MODEL}", "readonly"))
        )
    else:
        parts += [f'--volume "$HOME/.cache/{plan.cache}:/root/.cache/{plan.cache}"', "--env HF_TOKEN"]
    parts += [f"--env {shlex.quote(f'{name}={value}')}" for name, value in plan.environment.items()]
    parts.append(f"--entrypoint vllm {shlex.quote(plan.image)}")
    parts.append(shlex.join(container_arguments(plan)))
    return _commented(advice(plan), " \\\n    ".join(parts))


def container_arguments(plan: LaunchPlan) -> list[str]:
    """What follows `vllm` inside a container, a folder of the host being mounted at CONTAINER_MODEL."""
    return ["serve", CONTAINER_MODEL if plan.is_local else plan.model, *plan.argv[3:]]


def multinode(plan: LaunchPlan) -> str:
    """vLLM's own way over several machines: the same command on each, its rank told apart.

    Source: vLLM 0.26.0 config/parallel.py:268 (--nnodes, --node-rank, --master-addr), entrypoints/cli/serve.py:173
    (--headless on all but the first).
    """
    _refuse_one_node(plan, "multinode")
    lines = ["HEAD=192.0.2.1  # the first machine's address, as the others reach it"]
    for rank in range(plan.nodes):
        words = f'--nnodes {plan.nodes} --node-rank {rank} --master-addr "$HEAD" --master-port 29501'
        lines.append(f"# machine {rank + 1} of {plan.nodes}, {plan.gpus_per_node} GPUs")
        lines.append(f"{shell_command(plan.argv, plan.host_environment)} {words}{' --headless' if rank else ''}")
    return _commented([*advice(plan), "Set HEAD on every machine; start the first machine first."], "\n".join(lines))


def ray(plan: LaunchPlan) -> str:
    """A Ray cluster of the same machines: pipeline stages and tensor parallelism. Ray's own data parallelism is another
    backend with its own placement; vLLM's own form carries it too."""
    _refuse_one_node(plan, "ray")
    if plan.option("--data-parallel-size") not in (None, "1"):
        raise UnsupportedError("data_parallel_size", "the ray form has no data parallelism; use the multinode form")
    notes = [
        *advice(plan),
        "Ray's executor schedules without overlap, so a step holds fewer buffers than the plan counts.",
    ]
    lines = [
        "HEAD=192.0.2.1  # the first machine's address, as the others reach it",
        "# machine 1",
        "ray start --head --port=6379",
        f"# machines 2 to {plan.nodes}",
        'ray start --address="$HEAD:6379"',
        f"# machine 1, when `ray status` shows {plan.nodes * plan.gpus_per_node} GPUs",
        shell_command((*plan.argv, "--distributed-executor-backend", "ray"), plan.environment),
    ]
    return _commented(notes, "\n".join(lines))


def download(plan: LaunchPlan) -> str:
    """How to fetch the model beforehand, with the size to expect: Hugging Face, a mirror of it, ModelScope."""
    if plan.is_local:
        raise UnsupportedError("download", "the model is a local folder; there is nothing to download")
    size = f", expect {format_bytes(plan.download_bytes)}" if plan.download_bytes else ""
    model = shlex.quote(plan.model)
    return "\n".join([
        f"# Hugging Face{size} (pip install huggingface_hub)",
        f"hf download {model}",
        "# the same through a mirror",
        f"HF_ENDPOINT=https://hf-mirror.com hf download {model}",
        "# ModelScope (pip install modelscope); vLLM then needs VLLM_USE_MODELSCOPE=True",
        f"modelscope download --model {model}",
    ])  # fmt: skip


def _refuse_one_node(plan: LaunchPlan, form: str) -> None:
    if plan.nodes == 1:
        raise UnsupportedError(form, f"the {form} form is for several machines; this plan takes one (use serve)")


def _csv(*fields: str) -> str:
    """The comma-separated form that docker reads --mount in."""
    buffer = StringIO()
    csv.writer(buffer, lineterminator="").writerow(fields)
    return buffer.getvalue()


def _commented(notes: Iterable[str], text: str) -> str:
    return "\n".join([*(f"# {note}" for note in notes), text])
