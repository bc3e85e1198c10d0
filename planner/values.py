"""The base of the frozen values that cross rooms, and the closed sets of names they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, dataclass_transform

import msgspec


class _ValueMeta(msgspec.StructMeta):
    """Makes every class below `Value` frozen, made from keywords only, and read without unknown fields."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> _ValueMeta:
        options = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True, **options}
        return super().__new__(mcls, name, bases, namespace, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, frozen=True, metaclass=_ValueMeta):
    """A frozen record: a misspelt field is an error, not a surprise. Inside the program mypy checks the types; what
    comes from outside goes through `checked`. Records of what another program said are models: `planner.observed`."""

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """The value with these fields, each held against its type. ValueError names the first that does not fit."""
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """A copy with other values in some fields, which are not checked. It bears the name that models have."""
        return msgspec.structs.replace(self, **update)

    def model_dump(self, *, mode: Literal["json"]) -> dict[str, Any]:
        """The value as JSON holds it: dictionaries, lists, numbers and text. It bears the name that models have."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found


DType = Literal[
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
]

DTYPE_BYTES: dict[str, int] = {
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

Bottleneck = Literal[
    "weights",
    "kv_cache",
    "startup_memory",
    "device_memory",
    "heads_divisibility",
    "vocab_divisibility",
    "quantization_alignment",
    "quantization_capability",
    "dtype_capability",
    "kv_cache_dtype",
    "max_model_len",
    "batched_tokens",
    "attention_backend",
    "parallelism",
    "flag",
]


class Rejection(Value):
    """Why vLLM would not start (or a plan would not hold), in vLLM's own sentence where it has one."""

    bottleneck: Bottleneck
    message: str
    need_bytes: int | None = None
    have_bytes: int | None = None
    fix: tuple[str, ...] = ()


class Rejected(Exception):
    """Carries a `Rejection` from the rule that found it up to the estimate that reports it."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection


def reject(
    bottleneck: Bottleneck,
    message: str,
    *,
    need_bytes: int | None = None,
    have_bytes: int | None = None,
    fix: tuple[str, ...] = (),
) -> Rejected:
    """The exception to raise for one rejection."""
    return Rejected(
        Rejection(bottleneck=bottleneck, message=message, need_bytes=need_bytes, have_bytes=have_bytes, fix=fix)
    )
