"""Entry point of `vplan`: parse, call, print. The one place where errors become exit codes."""

from __future__ import annotations

import gc
import os
import sys

from planner.errors import PlannerError
from planner.foreign import is_secret, redacted, visible

_COLLECT_EVERY = 200_000
_STARTS_PROGRAMS = ("verify", "calibrate")


def run() -> None:
    """Entry point of the console script.

    A command lives for a moment and makes many small lasting values, so garbage is collected rarely, and not looked for
    once more at the end. No plugin of pydantic's is looked for in the packages around, except where the environment
    goes on to another program.
    """
    gc.set_threshold(_COLLECT_EVERY)
    argv = sys.argv[1:]
    if argv and argv[0] not in _STARTS_PROGRAMS:
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    code = main(argv)
    gc.freeze()
    raise SystemExit(code)


def main(argv: list[str]) -> int:
    """Run one command line; the exit code of shared contract: 0 fits, 1 does not, 2 input, 3 unsupported, 4 outside."""
    from typer import Abort
    from typer.exceptions import Exit, TyperException

    try:
        from planner.cli.application import application

        code = application(argv)(args=argv, prog_name="vplan", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Exit as stop:
        return stop.exit_code
    except PlannerError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _fail(error.format_message() or "see --help", 2)
    except (KeyboardInterrupt, Abort):
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
    secrets = (value for name, value in os.environ.items() if is_secret(name))
    line = visible(" ".join(redacted(message, secrets).split()))
    print(f"vplan: {line}", file=sys.stderr)
    return code
