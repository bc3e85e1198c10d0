"""LaunchPlan: one plan ready to start, and the forms in which it can be written down."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from planner.engine.config import EngineConfig
from planner.errors import InputError, UnsupportedError
from planner.foreign import check_variable_names, check_words
from planner.hardware.spec import GpuPool
from planner.values import Value

FORMS = ("serve", "docker", "compose", "kubernetes", "multinode", "ray", "xinference", "python", "download")
PORT = 8000


class LaunchPlan(Value):
    """`argv`: `vllm serve MODEL ...`, with the environment it needs. `gpus_per_node`: GPUs that the ranks of one node
    take; `node_gpus`: how many it has, where it has more. `peer_access`: the cards read each other's memory. `source`:
    hf or modelscope, where an id is downloaded from. `download_bytes`: what the weights take on disk, where known."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    gpus_per_node: int = 1
    node_gpus: int | None = None
    nodes: int = 1
    vllm_version: str
    peer_access: bool = True
    source: str = "hf"
    download_bytes: int | None = None

    @property
    def model(self) -> str:
        return self.argv[2]

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder rather than an id to download."""
        return self.model.startswith(("/", "./", "../", "~")) or os.path.exists(self.model)

    @property
    def folder(self) -> str:
        return os.path.abspath(os.path.expanduser(self.model))

    @property
    def image(self) -> str:
        return f"vllm/vllm-openai:v{self.vllm_version.removeprefix('v')}"

    @property
    def cache(self) -> str:
        """The folder under ~/.cache that holds what is downloaded."""
        return "modelscope" if self.source == "modelscope" else "huggingface"

    @property
    def name(self) -> str:
        """A DNS label made from the model's last name."""
        last = os.path.basename(self.folder if self.is_local else self.model).lower()
        label = re.sub(r"[^a-z0-9]+", "-", last)[:50].strip("-")
        return f"vllm-{label}" if label else "vllm"

    @property
    def environment(self) -> dict[str, str]:
        """The plan's variables, where the model is fetched from when that is not Hugging Face, and for several cards
        without peer access NCCL's order not to try it: such cards lose nothing by it, and those whose driver claims an
        access that does not work would hang at startup."""
        asked = dict(self.env)
        if self.source == "modelscope" and not self.is_local:
            asked.setdefault("VLLM_USE_MODELSCOPE", "True")
        if not self.peer_access and self.gpus_per_node > 1:
            asked.setdefault("NCCL_P2P_DISABLE", "1")
        return asked

    @property
    def host_environment(self) -> dict[str, str]:
        """For an engine that runs on the host itself, which leaves the cards that it does not take to others. A
        container sees only the cards that it is given."""
        asked = self.environment
        if self.node_gpus is not None and self.node_gpus > self.gpus_per_node:
            asked.setdefault("CUDA_VISIBLE_DEVICES", ",".join(str(card) for card in range(self.gpus_per_node)))
        return asked

    def option(self, name: str) -> str | None:
        """The value that an option has in argv."""
        for index, word in enumerate(self.argv[3:], 3):
            if word == name and index + 1 < len(self.argv):
                return self.argv[index + 1]
            if word.startswith(name + "="):
                return word.partition("=")[2]
        return None

    @property
    def port(self) -> int:
        text = self.option("--port")
        port = int(text) if text and text.isdecimal() and len(text) <= 5 else PORT
        return port if 0 < port < 1 << 16 else PORT


def launch_plan(
    argv: Sequence[str], env: Mapping[str, str], config: EngineConfig, gpus: GpuPool, *, source: str = "hf",
    download_bytes: int | None = None,
) -> LaunchPlan:  # fmt: skip
    """The plan of `argv` on the machines of `gpus`: as few nodes as hold its ranks, equally filled."""
    nodes = -(-config.world_size // gpus.count)
    if config.world_size % nodes:
        raise InputError(f"{config.world_size} ranks cannot be spread evenly over {nodes} nodes")
    return LaunchPlan(
        argv=tuple(argv),
        env=tuple(env.items()),
        gpus_per_node=config.world_size // nodes,
        node_gpus=gpus.count,
        nodes=nodes,
        vllm_version=config.vllm_version,
        peer_access=gpus.gpu.peer_access,
        source=source,
        download_bytes=download_bytes,
    )


def render(form: str, plan: LaunchPlan) -> str:
    """The plan as text of one of FORMS, ready to paste or save; it ends without a newline.

    Raises InputError for an unknown form and for words that no command can carry (NUL, control characters),
    UnsupportedError where the form cannot carry the plan.
    """
    if form not in FORMS:
        raise InputError(f"unknown launch form {form!r} (choose from {', '.join(FORMS)})")
    if plan.nodes > 1 and form not in ("multinode", "ray", "download"):
        raise UnsupportedError(
            form, f"the {form} form starts one machine; this plan takes {plan.nodes} (use multinode)"
        )
    check_variable_names(name for name, _ in plan.env)
    check_words((*plan.argv, *(value for _, value in plan.env), plan.vllm_version))
    return _renderer(form)(plan).rstrip("\n")


def advice(plan: LaunchPlan) -> list[str]:
    """What the reader should know of the form, as comment lines."""
    lines = []
    if not plan.peer_access and plan.gpus_per_node > 1:
        lines.append("These cards have no peer access: NCCL is told not to try it. All-reduces go through host memory.")
    return lines


def _renderer(form: str) -> Callable[[LaunchPlan], str]:
    if form in ("compose", "kubernetes"):
        from planner.serve.forms import manifests

        return manifests.compose if form == "compose" else manifests.kubernetes
    if form in ("xinference", "python"):
        from planner.serve.forms import engine

        return engine.xinference if form == "xinference" else engine.python
    from planner.serve.forms import shell

    return {
        "serve": shell.serve,
        "docker": shell.docker,
        "multinode": shell.multinode,
        "ray": shell.ray,
        "download": shell.download,
    }[form]
