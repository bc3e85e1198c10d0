"""--mm-processor-kwargs: the processor settings that change how many patches an item has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from planner.errors import InputError, UnsupportedError

_HARMLESS = frozenset({
    "use_fast", "backend", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample",
    "do_convert_rgb", "return_tensors", "disable_grouping", "device", "fps", "truncation", "padding",
})  # fmt: skip
_COUNTS = (
    "min_pixels", "max_pixels", "max_dynamic_patch", "min_dynamic_patch", "num_crops", "max_slice_nums",
    "pan_and_scan_max_num_crops", "max_crops", "max_soft_tokens", "in_token_limit", "max_patches",
)  # fmt: skip
_FLAGS = ("dynamic_image_size", "do_pan_and_scan", "do_image_splitting", "use_thumbnail")


class ProcessorKwargs(Struct, frozen=True):
    """The keys that were given, checked. `size` is the processor's size dict, other keys keep their own names."""

    size: tuple[tuple[str, int], ...] = ()
    values: tuple[tuple[str, int | bool], ...] = ()

    def count(self, name: str) -> int | None:
        value = dict(self.values).get(name)
        return None if value is None else int(value)

    def flag(self, name: str, default: bool) -> bool:
        return bool(dict(self.values).get(name, default))

    def edge(self, name: str) -> int | None:
        return dict(self.size).get(name)

    def refuse_all_but(self, family: str, *known: str) -> None:
        """UnsupportedError where a key was given that this family's processor reads in a way not modelled here."""
        given = [name for name, _ in self.values if name not in known]
        if self.size and "size" not in known:
            given.append("size")
        if given:
            raise UnsupportedError(
                "mm_processor_kwargs",
                f"--mm-processor-kwargs: {', '.join(sorted(given))} is not known for {family} processors "
                f"(known: {', '.join(known) or 'none'})",
            )


NO_KWARGS = ProcessorKwargs()


def processor_kwargs(text: str | None) -> ProcessorKwargs:
    """Read the flag's JSON. Keys that cannot change sizes are dropped; an unknown key is an UnsupportedError.

    `fps` changes only the time positions of frames that the loader has already picked. Raises InputError for text
    that is no JSON object and for values of the wrong type.
    """
    if text is None:
        return NO_KWARGS
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InputError(f"--mm-processor-kwargs: not a JSON object: {text}")
    size: tuple[tuple[str, int], ...] = ()
    values: list[tuple[str, int | bool]] = []
    for name, value in given.items():
        if name in _HARMLESS or value is None:
            continue
        if name == "size":
            size = _size(value)
        elif name in _COUNTS:
            values.append((name, _count(name, value)))
        elif name in _FLAGS and isinstance(value, bool):
            values.append((name, value))
        elif not _default_choice(name, value):
            raise UnsupportedError(
                "mm_processor_kwargs", f"--mm-processor-kwargs: {name}={value!r} is not supported by this planner"
            )
    return ProcessorKwargs(size=size, values=tuple(values))


def _size(value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, Mapping):
        raise InputError(f"--mm-processor-kwargs: size must be an object, found {value!r}")
    return tuple((str(name), _count(f"size.{name}", number)) for name, number in value.items())


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"--mm-processor-kwargs: {name} must be a whole number of at least 1, found {value!r}")
    return value


def _default_choice(name: str, value: Any) -> bool:
    """Whether a switch is set to what vLLM does anyway: it resizes, and has picked the frames before."""
    return (name == "do_resize" and value is True) or (name == "do_sample_frames" and value is False)
