"""Architectures that a release refuses before it reads anything else of the model."""

from __future__ import annotations

from planner.releases.choose import release_for, version_number
from planner.values import reject


def refuse_architecture(architecture: str, vllm_version: str) -> None:
    """Raises Rejected with vLLM's sentence for a class that this release no longer serves.

    Asked before the model is laid out, since such a class is not laid out here either.
    Source: vLLM 0.26.0 model_executor/models/registry.py:1087.
    """
    choice = release_for(vllm_version)
    last = dict(choice.release.removed_architectures).get(architecture)
    if last is None or choice.number <= version_number(last):
        return
    raise reject(
        "flag",
        f"Model architecture {architecture} was supported in vLLM until v{last}, and is not supported anymore. Please "
        "use an older version of vLLM if you want to use this model architecture.",
        fix=(f"vLLM {last}",),
    )
