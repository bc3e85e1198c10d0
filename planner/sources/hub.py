"""Model files from Hugging Face or ModelScope: configs, processor configs and safetensors headers, never weights."""

from __future__ import annotations

import logging
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from planner.errors import InputError, OutsideError
from planner.foreign import is_secret, redacted, visible
from planner.model.spec import ModelFiles
from planner.sources.json_file import MAX_JSON_BYTES, decode, parse_json_object
from planner.sources.model_folder import CONFIG, INDEX, SIDE_FILES, assemble, index_bytes, reads_headers
from planner.sources.safetensors_headers import CheckpointTensors, summarize

_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}|[\w.-]{1,96}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_TIMEOUT_SECONDS = 20
MODELSCOPE = "https://modelscope.cn"
MAX_INDEX_BYTES = 64 << 20

Fetch = Callable[[str, int], str | None]


def fetch_model(repository: str, source: Literal["hf", "modelscope"], *, hint: str = "") -> ModelFiles:
    """The files of a repository. `hint` ends the message when there is no such repository.

    InputError: no such repository or no config.json in it. OutsideError: network, permission or a missing package.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InputError(f"--model {repository!r}: neither a path nor an id of the form owner/name{hint}")
    fetch = _hugging_face(repository, hint) if source == "hf" else _modelscope(repository)
    where = f"{repository} ({'Hugging Face' if source == 'hf' else 'ModelScope'})"
    text = fetch(CONFIG, MAX_JSON_BYTES)
    if text is None:
        raise InputError(f"--model {repository!r}: no such repository, or no {CONFIG} in it{hint}")
    config = parse_json_object(text, f"{where} {CONFIG}")
    side: dict[str, dict[str, Any]] = {}
    for key, file in SIDE_FILES.items():
        content = fetch(file, MAX_JSON_BYTES)
        if content is not None:
            side[key] = parse_json_object(content, f"{where} {file}")
    index = fetch(INDEX, MAX_INDEX_BYTES)
    size = index_bytes(parse_json_object(index, f"{where} {INDEX}")) if index is not None else None
    headers = _hugging_face_headers(repository) if source == "hf" and (size is None or reads_headers(config)) else None
    return assemble(repository, config, side, headers=headers, index_total=size, source=where)


def check_endpoint(url: str) -> None:
    """Refuse an endpoint that is not https; http is let through to this machine itself."""
    if _is_safe(url):
        return
    raise InputError(f"HF_ENDPOINT {redacted(url)!r}: only https endpoints are used")


def _hugging_face(repository: str, hint: str) -> Fetch:
    """Fetch through huggingface_hub, which honours HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    check_endpoint(endpoint)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise OutsideError(
            "fetching from Hugging Face needs the package huggingface_hub (pip install 'vplan[hub]')"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    cache_only = not _has_address(endpoint)

    def fetch(file: str, limit_bytes: int) -> str | None:
        try:
            if not cache_only:
                _refuse_download(repository, file, limit_bytes)
            path = huggingface_hub.hf_hub_download(repository, file, local_files_only=cache_only)
            with open(path, "rb") as content:
                return decode(content.read(limit_bytes + 1), f"{repository} {file}", limit_bytes=limit_bytes)
        except errors.GatedRepoError:
            raise OutsideError(f"{repository} is gated on Hugging Face: accept its terms and set HF_TOKEN") from None
        except errors.LocalEntryNotFoundError:
            if file != CONFIG:
                return None
            raise OutsideError(f"{repository}: Hugging Face cannot be reached, nothing of it is cached{hint}") from None
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError):
            return None
        except Exception as error:
            raise OutsideError(f"{repository}: {_one_line(error)}") from None

    return fetch


def _refuse_download(repository: str, file: str, limit_bytes: int) -> None:
    """OutsideError before anything is fetched that is too large, or to which the hub sends over an address that is not
    https. What else goes wrong here is left to the download to say."""
    import huggingface_hub

    try:
        metadata = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file))
    except Exception:
        return
    if metadata.size is not None and metadata.size > limit_bytes:
        raise OutsideError(f"{file} has {metadata.size:,} bytes, more than {limit_bytes >> 20} MiB; it is not fetched")
    if not _is_safe(metadata.location):
        raise OutsideError(f"{file} is redirected to an address that is not https")


def _is_safe(url: str) -> bool:
    """https, or http to this machine itself."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _has_address(endpoint: str) -> bool:
    """Whether the endpoint's name resolves (or a proxy will see to it): without, many retries would come first."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True


def _hugging_face_headers(repository: str) -> CheckpointTensors | None:
    """The safetensors headers of a repository by range requests; None when it has no safetensors files."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        files = huggingface_hub.HfApi().get_safetensors_metadata(repository).files_metadata
    except errors.NotASafetensorsRepoError:
        return None
    except Exception as error:
        raise OutsideError(f"{repository}: the safetensors headers cannot be read: {_one_line(error)}") from None
    return summarize(
        (name, file, {"dtype": tensor.dtype, "data_offsets": list(tensor.data_offsets)})
        for file, metadata in files.items()
        for name, tensor in metadata.tensors.items()
    )


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme != "https":
            raise OutsideError(f"{req.full_url}: redirected to an address that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _modelscope(repository: str) -> Fetch:
    opener = urllib.request.build_opener(_HttpsOnly)

    def fetch(file: str, limit_bytes: int) -> str | None:
        url = f"{MODELSCOPE}/models/{quote(repository)}/resolve/master/{file}"
        try:
            with opener.open(url, timeout=_TIMEOUT_SECONDS) as response:
                return decode(response.read(limit_bytes + 1), url, limit_bytes=limit_bytes)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise OutsideError(f"{url}: HTTP {error.code}") from None
        except OSError as error:
            raise OutsideError(f"{url}: {_one_line(error)}") from None

    return fetch


def _one_line(error: Exception) -> str:
    secrets = (value for name, value in os.environ.items() if is_secret(name))
    text = visible(" ".join(redacted(str(error), secrets).split()))
    return (text or type(error).__name__)[:300]
