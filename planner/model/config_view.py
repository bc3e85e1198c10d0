"""Typed, checked reading of one config section. A wrong type or size is an InputError that names the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, UnsupportedError
from planner.model.hf_defaults import DEFAULTS

if TYPE_CHECKING:
    from planner.model.spec import ModelFiles

MAX_SIZE = 1 << 40
MAX_LAYERS = 4096
_PLAIN_SIZES = frozenset(
    ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
)


class ConfigView:
    """One section of a config.json with transformers' defaults beneath it.

    A key that the file omits takes the default that transformers' configuration class for this model_type would fill
    in; a key that neither has is an error when asked for without a fallback. `where` names the section in messages.
    `files` are the other files of the model folder (processors), where the builder has them.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        where: str = "config.json",
        model_type: str | None = None,
        files: ModelFiles | None = None,
    ) -> None:
        if not isinstance(data, Mapping):
            raise InputError(f"{where}: expected an object, found {type(data).__name__}")
        self.data = data
        self.where = where
        self.files = files
        self.model_type = model_type or str(data.get("model_type", ""))
        self.defaults: Mapping[str, Any] = json.loads(DEFAULTS.get(self.model_type, "{}"))
        self._refuse_wrong_sizes()

    def __contains__(self, key: str) -> bool:
        return self.raw(key) is not None

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as parsed: from the file, else transformers' default, else `default`."""
        if key in self.data and self.data[key] is not None:
            return self.data[key]
        value = self.defaults.get(key)
        return default if value is None else value

    def explicit(self, key: str) -> Any:
        """The value as transformers' configuration object has it before its own rules: a stated null stays null."""
        return self.data[key] if key in self.data else self.defaults.get(key)

    def stated(self, key: str) -> bool:
        """Whether the file itself has the key (even as null)."""
        return key in self.data

    def size(
        self, key: str, default: int | None = None, *, aliases: tuple[str, ...] = (), limit: int = MAX_SIZE
    ) -> int:
        """A positive whole number."""
        value = self._first((key, *aliases))
        if value is None:
            if default is None:
                raise InputError(f"{self.where}: {key} is missing")
            value = default
        return self._whole(key, value, 1, limit)

    def count(self, key: str, default: int | None = None, *, aliases: tuple[str, ...] = ()) -> int:
        """A whole number, zero allowed."""
        value = self._first((key, *aliases))
        if value is None:
            if default is None:
                raise InputError(f"{self.where}: {key} is missing")
            value = default
        return self._whole(key, value, 0, MAX_SIZE)

    def layers(self, key: str = "num_hidden_layers", *, aliases: tuple[str, ...] = ()) -> int:
        return self.size(key, aliases=aliases, limit=MAX_LAYERS)

    def optional_size(self, key: str) -> int | None:
        value = self.raw(key)
        return None if value is None else self._whole(key, value, 1, MAX_SIZE)

    def integer(self, key: str, default: int) -> int:
        """A whole number of either sign."""
        return self._whole(key, self.raw(key, default), -MAX_SIZE, MAX_SIZE)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{self.where}: {key} must be a number, found {_short(value)}")
        return float(value)

    def fraction(self, key: str, default: float | None = None) -> float:
        """A number above 0 and at most 1."""
        value = self.number(key, default)
        if not 0 < value <= 1:
            raise InputError(f"{self.where}: {key} must be above 0 and at most 1, found {value}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {key} must be true or false, found {_short(value)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {key} must be text, found {_short(value)}")
        return value

    def strings(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = self.raw(key, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{self.where}: {key} must be a list of texts, found {_short(value)}")
        return tuple(value)

    def sizes(self, key: str, default: tuple[int, ...] | None = None, *, count: int = 0) -> tuple[int, ...]:
        """A list of whole numbers, zero allowed; exactly `count` of them, above zero, if that is given."""
        value = self.raw(key, default)
        if not isinstance(value, (list, tuple)) or (count and len(value) != count):
            raise InputError(f"{self.where}: {key} must be a list of whole numbers, found {_short(value)}")
        return tuple(self._whole(key, item, 1 if count else 0, MAX_SIZE) for item in value)

    def section(self, key: str, model_type: str | None = None) -> ConfigView:
        """A nested object; a missing one is an empty section with the defaults of `model_type`."""
        value = self.data.get(key)
        return ConfigView({} if value is None else value, f"{self.where}: {key}", model_type, self.files)

    def require(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> None:
        """Refuse a value whose effect on memory is not known here."""
        value = self.raw(key, default)
        if value not in allowed:
            raise UnsupportedError(key, f"{self.where}: {key} = {_short(value)} is not supported by this planner")

    def numbers(self, key: str, count: int) -> tuple[tuple[int, ...], ...]:
        """A list of lists of `count` positive whole numbers each."""
        value = self.raw(key)
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(item, (list, tuple)) and len(item) == count for item in value
        ):
            raise InputError(f"{self.where}: {key} must be a list of lists of {count}, found {_short(value)}")
        return tuple(tuple(self._whole(key, part, 1, MAX_SIZE) for part in item) for item in value)

    def _refuse_wrong_sizes(self) -> None:
        """Whole numbers must be whole where transformers' class declares them so, read here or not. A list may stand
        for a few of them, such as vision_feature_layer, never for the plain sizes.

        Source: huggingface_hub dataclasses.strict, which transformers 5.14.1 configuration classes are made with.
        """
        declared = {key for key, default in self.defaults.items() if type(default) is int}
        for key in sorted(declared | _PLAIN_SIZES):
            value = self.data.get(key)
            whole = value is None or type(value) is int or (isinstance(value, float) and value.is_integer())
            if not whole and (key in _PLAIN_SIZES or not isinstance(value, (list, dict))):
                raise InputError(f"{self.where}: {key} must be a whole number, found {_short(value)}")

    def _first(self, keys: tuple[str, ...]) -> Any:
        for key in keys:
            if self.data.get(key) is not None:
                return self.data[key]
        for key in keys:
            if self.defaults.get(key) is not None:
                return self.defaults[key]
        return None

    def _whole(self, key: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{self.where}: {key} must be a whole number from {low} to {high}, found {_short(value)}")
        return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
