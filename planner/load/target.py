"""Whom a load test goes to: loopback, or a host that was spelt out and confirmed."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from planner.errors import InputError, OutsideError

_MAX_BYTES = 1 << 20


class Target(Struct, frozen=True):
    """A server. `base`: scheme, host, port, path before /v1. `api_key` goes nowhere else: no redirect is followed."""

    base: str
    is_loopback: bool
    api_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


class Served(Struct, frozen=True):
    """What /v1/models says. `is_vllm`: whether vLLM's own request fields are understood."""

    model: str
    max_model_len: int | None
    is_vllm: bool


def parse_target(url: str, confirmed: bool, api_key: str | None = None) -> Target:
    """InputError for what is no http address, another host without `confirmed`, a key that would go in the clear."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InputError(f"--url: write http://HOST:PORT, not {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("--url: no user, password, query or fragment; a key goes in --api-key-env")
    loopback = _is_loopback(parts.hostname)
    if not loopback and not ("//" in url and confirmed):
        raise InputError(
            f"--url {url}: {parts.hostname} is another host; a load test can take a service down. "
            "Spell the URL out with http:// or https:// and add --yes if it may be loaded"
        )
    if api_key is not None and parts.scheme == "http" and not loopback:
        raise InputError(f"--api-key-env: the key would go to {parts.hostname} unencrypted; use https")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Target(f"{parts.scheme}://{parts.netloc}{path}", loopback, api_key)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ask(target: Target, model: str | None, timeout_s: float) -> Served:
    """The model that the server serves, or the named one of several. OutsideError where it does not say."""
    httpx = _httpx()
    url = target.base + "/v1/models"
    try:
        with (
            httpx.Client(timeout=timeout_s, trust_env=False) as client,
            client.stream("GET", url, headers=target.headers) as answer,
        ):
            if answer.status_code != 200:
                raise OutsideError(f"{url} answers {answer.status_code}{_redirect(answer.headers.get('location'))}")
            body = b""
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise OutsideError(f"{url} answers more than {_MAX_BYTES >> 20} MiB")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise OutsideError(f"no answer from {url}: {type(error).__name__} {error}".strip()[:200]) from None
    return _served(body, url, model)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise OutsideError(
            "loadtest needs the packages httpx and prometheus-client (pip install 'vplan[monitor]')"
        ) from None
    return httpx


def _served(body: bytes, url: str, model: str | None) -> Served:
    import json

    try:
        entries: list[dict[str, Any]] = json.loads(body)["data"]
        names = [str(entry["id"]) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OutsideError(f"{url} does not list models") from None
    if not names or (model is not None and model not in names):
        shown = ", ".join(names[:8]) or "none"
        raise OutsideError(f"{url} lists {shown}" + ("" if model is None else f", not {model}"))
    entry = entries[0 if model is None else names.index(model)]
    longest = entry.get("max_model_len")
    return Served(
        model=str(entry["id"]),
        max_model_len=longest if isinstance(longest, int) and longest > 0 else None,
        is_vllm=entry.get("owned_by") == "vllm",
    )


def _redirect(location: str | None) -> str:
    return "" if location is None else f" (a redirect to {location[:80]}, which is not followed)"
