"""Changes of a launch command: options set, dropped and renamed in its words, whatever launcher they are for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from planner.doctor.failure import Edit
from planner.doctor.figures import fill_in
from planner.releases.flags import Flag, flags_for, removed_flag

_SUCCESSOR = re.compile(r"(--[a-z-]+) (?:N|F|NAME|JSON|GIB)\b")
_SWITCHES = ("--disable-", "--enable-", "--use-", "--no-", "--worker-use-", "--engine-use-", "--enforce-", "--trust-")


class CommandWords:
    """The words of one launch, being changed. `release`: whose options they are."""

    def __init__(self, words: Sequence[str], release: str) -> None:
        self.words = list(words)
        self._flags = {name: flag for flag in flags_for(release) for name in (*flag.options, *flag.negatives)}

    @property
    def xinference(self) -> bool:
        return any(os.path.basename(word) == "xinference" for word in self.words[:4])

    def apply(self, edits: Sequence[Edit], figures: Mapping[str, str]) -> bool:
        """Make the changes whose figures are known. False where none was made."""
        before = list(self.words)
        for edit in edits:
            name, value = fill_in(edit.name, figures), fill_in(edit.value, figures)
            if name is not None and value is not None:
                self._apply(edit, name, value)
        return self.words != before

    def _apply(self, edit: Edit, name: str, value: str) -> None:
        if edit.change == "env":
            self._environment(name, value)
        elif edit.change == "drop":
            self._drop(name)
        elif edit.change == "rename":
            self._rename(name, value)
        elif edit.change == "set" or self._find(name) is None:
            self._set(name, value)

    def _find(self, option: str) -> int | None:
        names = self._spellings(option)
        for index, word in enumerate(self.words):
            spelt = "--" + word[2:].replace("_", "-") if word.startswith("--") else word
            head = spelt.partition("=")[0].partition(".")[0]
            if head in names:
                return index
        return None

    def _spellings(self, option: str) -> set[str]:
        option = "--" + option[2:].replace("_", "-") if option.startswith("--") else option
        flag = self._flags.get(option)
        return {option, *(flag.options if flag else ())}

    def _set(self, option: str, value: str) -> None:
        while self._find(option) is not None:
            self._drop(option)
        if self.xinference:
            self.words += ["--" + option[2:].replace("-", "_"), value or "true"]
        else:
            self.words += [option, value] if value else [option]

    def _drop(self, option: str) -> None:
        index = self._find(option)
        if index is None:
            return
        word = self.words[index]
        count = 1 if "=" in word or (self._is_switch(option) and not self.xinference) else 2
        if count == 2 and not self._has_value(index):
            count = 1
        del self.words[index : index + count]

    def _has_value(self, index: int) -> bool:
        following = self.words[index + 1 : index + 2]
        return bool(following) and not re.match(r"-{1,2}[a-zA-Z]", following[0])

    def _is_switch(self, option: str) -> bool:
        flag: Flag | None = self._flags.get("--" + option[2:].replace("_", "-"))
        if flag is not None:
            return flag.arity in ("switch", "bool")
        return option.replace("_", "-").startswith(_SWITCHES)

    def _rename(self, options: str, successor: str) -> None:
        """Each option of a list as its successor, or out. Options that the release takes stay as they are."""
        for word in options.split():
            if not word.startswith("-"):
                continue
            option = word.partition("=")[0]
            index = self._find(option)
            if index is None or ("--" + option[2:].replace("_", "-") in self._flags and not successor):
                continue
            removed = removed_flag(option)
            match = _SUCCESSOR.match(removed.fix[0]) if removed else None
            new = successor or (match[1] if match and not self._is_switch(option) else "")
            if new:
                _, equals, value = self.words[index].partition("=")
                self.words[index] = new + equals + value
            else:
                self._drop(option)

    def _environment(self, name: str, value: str) -> None:
        program = next((index for index, word in enumerate(self.words) if "=" not in word), 0)
        assignment = f"{name}={value}"
        if os.path.basename(self.words[program]) in ("docker", "podman", "nerdctl", "sudo") and "run" in self.words:
            at = self.words.index("run") + 1
            if assignment not in self.words:
                self.words[at:at] = ["-e", assignment]
            return
        self.words = [
            word for index, word in enumerate(self.words) if index >= program or not word.startswith(f"{name}=")
        ]
        self.words.insert(0, assignment)
