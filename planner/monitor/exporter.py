"""Plan against actual as gauges that Prometheus can scrape, and the Grafana dashboard that draws them."""

from __future__ import annotations

import json
from typing import Any

from planner.errors import OutsideError
from planner.monitor.planned import Planned
from planner.monitor.sample import Sample

_GAUGES = (
    ("vplan_server_up", "1 while the server answers"),
    ("vplan_kv_cache_usage", "share of the KV cache in use"),
    ("vplan_requests_running", "requests in a batch"),
    ("vplan_requests_waiting", "requests in the queue"),
    ("vplan_generation_tokens_per_second", "tokens generated"),
    ("vplan_prompt_tokens_per_second", "prompt tokens read"),
    ("vplan_warnings", "warnings of the last look"),
)
_CARD_GAUGES = (
    ("vplan_gpu_used_bytes", "memory in use on a card, with a plan less what the driver keeps"),
    ("vplan_gpu_planned_bytes", "memory that the plan has in use after startup"),
    ("vplan_gpu_planned_peak_bytes", "the most that the plan allows"),
)


class Exporter:
    """An HTTP server on one port with the gauges of the last sample."""

    def __init__(self, port: int, planned: Planned | None, address: str = "127.0.0.1") -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._plain = {name: Gauge(name, text, registry=registry) for name, text in _GAUGES}
        self._cards = {name: Gauge(name, text, ["gpu"], registry=registry) for name, text in _CARD_GAUGES}
        self._planned = planned
        try:
            self._server, self._thread = start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            raise OutsideError(f"--prometheus-port {port}: {error.strerror or error}") from None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def update(self, sample: Sample) -> None:
        """Show this sample. What nobody told is NaN, so that no graph draws an old figure on."""
        server = sample.server
        values = (
            float(server.problem is None), server.kv_cache_usage, server.running, server.waiting,
            sample.generation_tokens_per_s, sample.prompt_tokens_per_s, float(len(sample.warnings)),
        )  # fmt: skip
        for (name, _), value in zip(_GAUGES, values, strict=True):
            self._plain[name].set(float("nan") if value is None else value)
        for card in sample.cards:
            gpu = str(card.index)
            used = card.used_bytes if self._planned is None else self._planned.held_bytes(card)
            self._cards["vplan_gpu_used_bytes"].labels(gpu).set(float("nan") if used is None else used)
            if self._planned is not None:
                self._cards["vplan_gpu_planned_bytes"].labels(gpu).set(self._planned.used_bytes)
                self._cards["vplan_gpu_planned_peak_bytes"].labels(gpu).set(self._planned.peak_bytes)


_PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("GPU memory against the plan", "bytes", (
        ("vplan_gpu_used_bytes", "GPU {{gpu}} used"), ("vplan_gpu_planned_bytes", "GPU {{gpu}} planned"),
        ("vplan_gpu_planned_peak_bytes", "GPU {{gpu}} planned peak"),
    )),
    ("KV cache in use", "percentunit", (("vplan_kv_cache_usage", "in use"),)),
    ("Requests", "short", (("vplan_requests_running", "running"), ("vplan_requests_waiting", "waiting"))),
    ("Tokens per second", "short", (
        ("vplan_generation_tokens_per_second", "generated"), ("vplan_prompt_tokens_per_second", "read"),
    )),
    ("Warnings", "short", (("vplan_warnings", "warnings"), ("1 - vplan_server_up", "server down"))),
)  # fmt: skip


def dashboard() -> str:
    """A Grafana dashboard over the exporter's gauges, to import as it is (Grafana 10 or later)."""
    panels = [_panel(number, *panel) for number, panel in enumerate(_PANELS)]
    document = {
        "title": "vplan: plan against actual",
        "uid": "vplan",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }
    return json.dumps(document, indent=1)


def _panel(number: int, title: str, unit: str, targets: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": number % 2 * 12, "y": number // 2 * 8, "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(targets)
        ],
    }
