"""Where a command's answer goes: standard output or --output, in the asked format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.errors import InputError, OutsideError
from planner.foreign import visible

FORMATS = ("text", "json", "csv", "markdown")

Format = Annotated[str, typer.Option("--format", help="text, json, csv or markdown.")]
Output = Annotated[str | None, typer.Option("--output", help="Write the answer to this file.", show_default=False)]

LaunchForm = Annotated[
    str | None,
    typer.Option(
        "--launch-form",
        help="End in this form: docker, compose, kubernetes, multinode, ray, xinference, python, download.",
        show_default=False,
    ),
]


def check_launch_form(form: str | None, chosen: str) -> None:
    """A form ends a text; `vplan launch --plan FILE` makes one of a JSON answer."""
    if form is None:
        return
    from planner.serve.launch import FORMS

    if form not in FORMS:
        raise InputError(f"--launch-form: choose one of {', '.join(FORMS)}, not {form!r}")
    if chosen != "text":
        raise InputError(f"--launch-form goes with --format text, not {chosen}; vplan launch --plan reads the JSON")


def check_format(chosen: str, allowed: tuple[str, ...] = FORMATS) -> str:
    if chosen not in allowed:
        raise InputError(f"--format: choose one of {', '.join(allowed)}, not {chosen!r}")
    return chosen


def write(text: str, output: str | None) -> None:
    """The answer, ending in one newline. On standard output nothing in it but colours is an order to a terminal."""
    text = text.rstrip("\n") + "\n"
    if output is None:
        sys.stdout.write(visible(text, color=wants_color(output)))
        sys.stdout.flush()
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutsideError(f"--output {output}: {error.strerror or error}") from None


def wants_color(output: str | None) -> bool:
    return output is None and sys.stdout.isatty()
