"""Docker Compose and Kubernetes manifests. Built as data and dumped by PyYAML, never from text templates."""

from __future__ import annotations

from typing import Any

from planner.serve.forms.shell import CONTAINER_MODEL, container_arguments
from planner.serve.launch import LaunchPlan, advice

_SHARED_MEMORY = "16Gi"
_STARTUP_SECONDS = 3600


def compose(plan: LaunchPlan) -> str:
    """A compose file with one service. Compose expands `$`, hence the doubling."""
    volume: dict[str, Any] = {"type": "volume", "source": plan.cache, "target": f"/root/.cache/{plan.cache}"}
    if plan.is_local:
        volume = {"type": "bind", "source": _literal(plan.folder), "target": CONTAINER_MODEL, "read_only": True}
    environment = {name: _literal(value) for name, value in plan.environment.items()}
    if not plan.is_local:
        environment["HF_TOKEN"] = "${HF_TOKEN:-}"
    probe = f"import urllib.request; urllib.request.urlopen('http://localhost:{plan.port}/health', timeout=5)"
    service: dict[str, Any] = {
        "image": plan.image,
        "entrypoint": ["vllm"],
        "command": [_literal(word) for word in container_arguments(plan)],
        "environment": environment,
        "ports": [f"{plan.port}:{plan.port}"],
        "volumes": [volume],
        "ipc": "host",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", probe],
            "interval": "30s",
            "timeout": "10s",
            "retries": 3,
            "start_period": f"{_STARTUP_SECONDS}s",
        },
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [{"driver": "nvidia", "count": plan.gpus_per_node, "capabilities": ["gpu"]}]
                }
            }
        },
    }
    document: dict[str, Any] = {"services": {plan.name: service}}
    if not plan.is_local:
        document["volumes"] = {plan.cache: {}}
    return _dump(plan, document)


def kubernetes(plan: LaunchPlan) -> str:
    """A Deployment and its Service. Kubernetes expands `$(NAME)` and takes `$$` for `$`, hence the doubling.

    Service links are off: they would set VLLM_PORT for a service named vllm, which vLLM reads as its own.
    """
    labels = {"app": plan.name}
    health = {"path": "/health", "port": "http"}
    environment: list[dict[str, Any]] = [
        {"name": name, "value": _literal(value)} for name, value in plan.environment.items()
    ]
    if plan.is_local:
        storage: dict[str, Any] = {"name": "model", "hostPath": {"path": plan.folder, "type": "Directory"}}
        mount: dict[str, Any] = {"name": "model", "mountPath": CONTAINER_MODEL, "readOnly": True}
    else:
        storage = {"name": "cache", "emptyDir": {}}
        mount = {"name": "cache", "mountPath": f"/root/.cache/{plan.cache}"}
        secret = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
        environment.append({"name": "HF_TOKEN", "valueFrom": secret})
    container = {
        "name": "vllm",
        "image": plan.image,
        "command": ["vllm"],
        "args": [_literal(word) for word in container_arguments(plan)],
        "env": environment,
        "ports": [{"name": "http", "containerPort": plan.port}],
        "resources": {"limits": {"nvidia.com/gpu": str(plan.gpus_per_node)}},
        "startupProbe": {"httpGet": health, "periodSeconds": 10, "failureThreshold": _STARTUP_SECONDS // 10},
        "readinessProbe": {"httpGet": dict(health), "periodSeconds": 5},
        "livenessProbe": {"httpGet": dict(health), "periodSeconds": 30, "failureThreshold": 5},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, mount],
    }
    shared_memory = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": plan.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": {
                    "enableServiceLinks": False,
                    "containers": [container],
                    "volumes": [shared_memory, storage],
                },
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": plan.name, "labels": dict(labels)},
        "spec": {"selector": dict(labels), "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    return _dump(plan, deployment, service)


def _literal(text: str) -> str:
    """Text that the reader's own `$` expansion turns back into itself."""
    return text.replace("$", "$$")


def _dump(plan: LaunchPlan, *documents: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=2**20)
    return "".join(f"# {note}\n" for note in advice(plan)) + text
