"""The base of the frozen values that cross rooms, and the closed sets of names they use."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen, strict record: a misspelt field or a float where bytes belong is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True, protected_namespaces=())


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
