"""What can go wrong outside an answer, each with the exit code that the command line gives it."""

from __future__ import annotations


class PlannerError(Exception):
    """A failure that is told in one line. `exit_code` follows the contract: 2 input, 3 unsupported, 4 outside."""

    exit_code = 2


class InputError(PlannerError):
    """Wrong usage or a file that cannot be what it should be."""

    exit_code = 2


class UnsupportedError(PlannerError):
    """The model or feature is one that this planner does not know. `part` names it."""

    exit_code = 3

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


class OutsideError(PlannerError):
    """The network, a GPU or a vLLM process failed."""

    exit_code = 4
