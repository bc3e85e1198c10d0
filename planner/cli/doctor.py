"""`vplan doctor`: a failed launch's log in, its cause and the corrected command out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import Output, check_format, write
from planner.errors import InputError

_MAX_BYTES = 256 << 20
_TAIL_BYTES = 32 << 20


def doctor(
    file: Annotated[str, typer.Argument(help="A log, traceback or error text; - reads standard input.")],
    command: Annotated[
        str | None, typer.Option("--command", help="The launch, where the log lacks it.", show_default=False)
    ] = None,
    gpus: Annotated[
        str,
        typer.Option("--gpus", help="The cards, to check the cure: NAME:COUNT, as for estimate.", show_default=False),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model", help="The model, where the command names a folder of another machine.", show_default=False
        ),
    ] = "",
    vllm_version: Annotated[
        str | None, typer.Option("--vllm-version", help="The release to correct for.", show_default=False)
    ] = None,
    hardware_catalog: Annotated[
        list[str] | None,
        typer.Option("--hardware-catalog", help="More GPUs, a YAML file; repeatable.", show_default=False),
    ] = None,
    model_catalog: Annotated[
        list[str] | None,
        typer.Option("--model-catalog", help="More models, a YAML file; repeatable.", show_default=False),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Look the model up on its hub where it is not known here.")
    ] = False,
    format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Read a vLLM log (also one wrapped by Xinference, docker or Kubernetes), name the failure, correct the command.

    Exit code 0: a failure is recognised, or the log is of an engine that started. 1: the text is not recognised.

    Example: vllm serve ... 2>&1 | tee vllm.log; vplan doctor vllm.log --gpus l20:8
    """
    from planner import api
    from planner.cli.doctor_output import doctor_json, doctor_text
    from planner.cli.examine import examine

    check_format(format, ("text", "json"))
    asked = api.Request(
        model=model,
        gpus=gpus,
        vllm_version=vllm_version,
        offline=not online,
        hardware_catalogs=tuple(hardware_catalog or ()),
        model_catalogs=tuple(model_catalog or ()),
    )
    result = examine(_read(file), asked, command)
    write(doctor_json(result) if format == "json" else doctor_text(result), output)
    if result.diagnosis.status == "unknown":
        raise typer.Exit(1)


def _read(file: str) -> str:
    """The text of a file or of standard input; of a very long log its end. Broken bytes become question marks."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES)
        else:
            path = Path(file)
            with path.open("rb") as opened:
                if path.stat().st_size > _TAIL_BYTES and path.is_file():
                    opened.seek(-_TAIL_BYTES, 2)
                data = opened.read(_MAX_BYTES)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    if file.endswith(".gz"):
        data = _unpacked(data, file)
    text = data[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    if not text.strip():
        raise InputError(f"{'standard input' if file == '-' else file} is empty")
    return text


def _unpacked(data: bytes, file: str) -> bytes:
    import gzip
    import zlib

    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: {error}") from None
