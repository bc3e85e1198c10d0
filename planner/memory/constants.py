"""A number that no source gives and a machine did, with where it comes from and how far it spread."""

from __future__ import annotations

from msgspec import Struct


class Measured(Struct, frozen=True, kw_only=True):
    """`value` with the lowest and highest seen, in `unit`; `count` boots on `machine`."""

    value: int
    low: int
    high: int
    unit: str
    machine: str
    vllm_version: str
    date: str
    count: int
    what: str
