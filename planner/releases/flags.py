"""The options of `vllm serve`, release by release: what its argument parser takes, as data."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Literal, NamedTuple

from planner.releases.choose import nearest, release_for
from planner.releases.removed_flags import REMOVED_FLAGS, RemovedFlag

FLAG_TABLES = ("0.26.0", "0.33.0")
Arity = Literal["switch", "bool", "value", "list", "optional", "append"]


class Flag(NamedTuple):
    """One option of `vllm serve`.

    `options`: its spellings; `negatives`: the spellings that switch a "bool" off. `dest`: the name it is stored
    under. `arity`: "switch" takes no value, "bool" neither (`--x`, `--no-x`), "value" one, "list" one or more,
    "optional" none or one, "append" one and may be repeated. `kind`: how the value is read: int, float, str, json,
    json_or_str, human_int (`32k`), human_int_or_auto, lower_snake (`a-B` is `a_b`); a "?" at the end: `None` and the
    empty text are accepted as no value. `choices`: the only values accepted, empty for any. `default`: a plain value,
    or its source in angle brackets where only running vLLM tells it. `engine`: a field of EngineArgs, which `LLM(...)`
    takes too; else an option of the HTTP server.
    """

    options: tuple[str, ...]
    negatives: tuple[str, ...]
    dest: str
    arity: Arity
    kind: str
    choices: tuple[Any, ...]
    default: Any
    engine: bool

    @property
    def name(self) -> str:
        """The long spelling."""
        return next((option for option in self.options if option.startswith("--")), self.options[0])


def flags_for(version: str) -> tuple[Flag, ...]:
    """The flags of `version`, or of the nearest release whose flags are known. InputError for what is no version."""
    release = nearest(release_for(version).number, FLAG_TABLES)
    module = import_module(f"planner.releases.flags_v{release.replace('.', '_')}")
    return tuple(Flag(*row) for row in module.FLAGS)


def removed_flag(option: str) -> RemovedFlag | None:
    """What became of an option that vLLM once took, however it is spelt (`--swap_space`)."""
    name = re.sub("_", "-", option.partition("=")[0])
    return next((item for item in REMOVED_FLAGS if name in item.options), None)
