"""The `vplan` command: parse, call, print. The one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer
from typer.exceptions import Exit, TyperException

from planner.errors import PlannerError

COMMANDS = (
    "fit", "estimate", "explain", "verify", "calibrate", "report", "select", "sweep", "compare", "doctor", "probe",
    "monitor", "catalog",
)  # fmt: skip
"""Each is a function in the module of its name in `planner.cli`, or a group of commands there named `app`."""


def application(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The program with these commands. Only their modules are imported: a command needs few of the planner's parts."""
    app = typer.Typer(
        name="vplan",
        help="Plan GPU memory for vLLM: a model's config.json in, a ledger and a launch command out.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_no_options)
    for name in names:
        module = import_module(f"planner.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def _no_options() -> None:
    """Keeps a program of one command from taking that command's place."""


def run() -> None:
    """Entry point of the console script."""
    raise SystemExit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line; the exit code of shared contract: 0 fits, 1 does not, 2 input, 3 unsupported, 4 outside."""
    try:
        app = application(argv[:1] if argv[:1] and argv[0] in COMMANDS else COMMANDS)
        code = app(args=argv, prog_name="vplan", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Exit as stop:
        return stop.exit_code
    except PlannerError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _fail(error.format_message() or "see --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("VPLAN_TRACEBACK"):
            raise
        return _fail(
            f"internal error, please report it: {type(error).__name__}: {error} (VPLAN_TRACEBACK=1 shows where)", 4
        )


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"vplan: {line}", file=sys.stderr)
    return code
