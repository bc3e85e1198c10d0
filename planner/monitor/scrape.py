"""Asking a server for its metrics: bounded in time and size, and never an exception for what a server may do."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from planner.errors import InputError, OutsideError
from planner.foreign import redacted, visible
from planner.monitor.metrics import read_metrics
from planner.monitor.sample import ServerLook

_MAX_BYTES = 16 << 20


def metrics_url(url: str) -> str:
    """The address of /metrics for a server's address. InputError for what is no http address."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise InputError(f"--url: write http://HOST:PORT, not {url!r}")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/metrics") else path.removesuffix("/v1") + "/metrics"
    return f"{parts.scheme}://{parts.netloc}{path}"


class Server:
    """One server, asked again and again over one connection."""

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            import httpx
            import prometheus_client  # noqa: F401
        except ImportError:
            raise OutsideError(
                "monitor needs the packages httpx and prometheus-client (pip install 'vplan[monitor]')"
            ) from None
        self.url = metrics_url(url)
        self._timeout_s = timeout_s
        self._errors = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)
        self._client = httpx.Client(timeout=timeout_s, follow_redirects=True, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def look(self) -> ServerLook:
        """What the server says now, or why it does not."""
        try:
            return read_metrics(self._text())
        except OutsideError as error:
            return ServerLook(problem=str(error))
        except self._errors as error:
            problem = f"no answer from {redacted(self.url)}: {type(error).__name__} {visible(redacted(str(error)))}"
            return ServerLook(problem=problem.strip()[:200])

    def _text(self) -> str:
        """The body. The whole answer has to be there within the timeout, however slowly it drips."""
        deadline = time.monotonic() + self._timeout_s
        with self._client.stream("GET", self.url) as response:
            if response.status_code != 200:
                raise OutsideError(f"{self.url} answers {response.status_code}")
            body = b""
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise OutsideError(f"{self.url} answers more than {_MAX_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise OutsideError(f"{self.url} did not finish its answer in {self._timeout_s:g} s")
        return body.decode("utf-8", errors="replace")
