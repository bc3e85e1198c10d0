"""The program that the command line runs: `vplan` with the commands of the modules beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import typer

from planner.cli.plain import PlainCommand, PlainGroup

COMMANDS = (
    "fit", "estimate", "explain", "launch", "speed", "verify", "calibrate", "report", "select", "matrix", "sweep",
    "compare", "doctor", "probe", "monitor", "loadtest", "catalog",
)  # fmt: skip
"""Each is a function in the module of its name in `planner.cli`, or a group of commands there named `app`."""


def application(argv: Sequence[str]) -> typer.Typer:
    """The program with the command that `argv` begins with, or with all of them where it begins with none.

    Only the commands' own modules are imported: one command needs few of the planner's parts.
    """
    app = typer.Typer(
        name="vplan",
        cls=PlainGroup,
        help="Plan GPU memory for vLLM: a model's config.json in, a ledger and a launch command out.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_no_options)
    for name in argv[:1] if argv and argv[0] in COMMANDS else COMMANDS:
        module = import_module(f"planner.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, cls=PlainCommand)(getattr(module, name))
    return app


def _no_options() -> None:
    """Keeps a program of one command from taking that command's place."""
