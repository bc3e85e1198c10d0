"""How vLLM decides by name which layers a checkpoint's lists speak of."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import translate
from functools import lru_cache

from planner.errors import InputError
from planner.model.modules import PackedNames
from planner.values import Rejected, reject


def map_name(name: str, names: PackedNames) -> str:
    """A checkpoint's name as the vLLM model calls it: each matching prefix replaced once, in order.

    Source: vLLM 0.26.0 model_executor/models/utils.py:76 WeightsMapper._map_name.
    """
    for checkpoint, vllm in names.prefixes:
        if name.startswith(checkpoint):
            name = vllm + name[len(checkpoint) :]
    return name


def map_names(values: Iterable[str], names: PackedNames) -> tuple[str, ...]:
    return tuple(map_name(value, names) for value in values)


def shards_of(name: str, fused: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The checkpoint's names of a fused layer's parts, empty for a layer that is not fused."""
    last = name.rsplit(".", 1)[-1]
    return tuple(name.replace(last, shard) for shard in fused[last]) if last in fused else ()


def is_layer_skipped(
    name: str, ignored: Collection[str], fused: Mapping[str, tuple[str, ...]], *, substrings: bool = False
) -> bool:
    """Whether AWQ, FP8 and ModelOpt leave a layer unquantized.

    `substrings`: an entry that is part of the name skips it (AWQ), else it must be the whole name. Expert layers
    match when their name is part of an entry. Raises Rejected when some parts of a fused layer match and some do
    not. Source: vLLM 0.26.0 layers/quantization/utils/quant_utils.py:510.
    """

    def matches(candidate: str) -> bool:
        return any(entry in candidate for entry in ignored) if substrings else candidate in ignored

    parts = shards_of(name, fused)
    if parts:
        return matches(name) or _agreed(name, parts, matches)
    if "experts" in name and not substrings:
        return any(name in entry for entry in ignored if "experts" in entry)
    return matches(name)


def is_layer_listed(name: str, listed: Iterable[str], fused: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a list of quantized modules covers a layer, by substring (GPTQ's modules_in_block_to_quantize).

    Source: vLLM 0.26.0 layers/quantization/utils/gptq_utils.py is_layer_gptq_quantized.
    """
    entries = tuple(listed)

    def matches(candidate: str) -> bool:
        return any(entry in candidate for entry in entries)

    parts = shards_of(name, fused)
    return _agreed(name, parts, matches) if parts else matches(name)


def should_ignore_layer(name: str, ignore: Collection[str], fused: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a compressed-tensors ignore list covers a layer: equal names, or "re:" patterns from the start.

    Source: vLLM 0.26.0 layers/quantization/compressed_tensors/utils.py should_ignore_layer.
    """

    def matches(candidate: str) -> bool:
        return any(equal_or_regex(candidate, entry) for entry in ignore)

    parts = shards_of(name, fused)
    if not parts or name in ignore:
        return matches(name)
    try:
        return _agreed(name, parts, matches)
    except Rejected:
        last = name.rsplit(".", 1)[-1]
        raise reject(
            "quantization_alignment",
            f"Found a different quantization schemes for {list(fused[last])} in {name}. vLLM requires all to use the "
            "same scheme.",
        ) from None


def find_target(
    name: str, class_name: str, targets: Collection[str], fused: Mapping[str, tuple[str, ...]]
) -> str | None:
    """The compressed-tensors target that a layer falls under, None when none does.

    Tried in order: the layer's name, its class name (a target that is part of it counts, whatever the case), and all
    parts of a fused layer. Source: vLLM 0.26.0 compressed_tensors/utils.py find_matched_target.
    """
    for target in targets:
        if equal_or_regex(name, target):
            return target
    for target in targets:
        if _regex(target, class_name) if target.startswith("re:") else target.lower() in class_name.lower():
            return target
    key = next((key for key in fused if name.endswith(key)), None)
    if key is None:
        return None
    found = [_first(name.replace(key, part), targets) for part in fused[key]]
    return found[0] if found and all(found) else None


class Exclusions:
    """ModelOpt's exclude_modules: exact names, substrings, shell wildcards.

    Source: vLLM 0.26.0 layers/quantization/modelopt.py ModelOptQuantConfigBase.is_layer_excluded.
    """

    def __init__(self, entries: tuple[str, ...], fused: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
        self.entries, self._names, self._fused = entries, frozenset(entries), dict(fused)
        wild = [translate(entry) for entry in entries if any(sign in entry for sign in "*?[")]
        self._wildcards = re.compile("|".join(wild) or "(?!)")
        self._known: dict[str, bool] = {}

    def cover(self, name: str) -> bool:
        """Whether they cover a layer. Raises Rejected where they cover only some parts of a fused one."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._cover(name)
        return known

    def _cover(self, name: str) -> bool:
        if not self.entries:
            return False
        if is_layer_skipped(name, self._names, self._fused):
            return True
        inner = name.removeprefix("language_model.")
        if any(entry in name or entry in inner for entry in self.entries if entry != name):
            return True
        return name in self._names or self._wildcards.match(name) is not None


@lru_cache(maxsize=4)
def exclusions(entries: tuple[str, ...], fused: tuple[tuple[str, tuple[str, ...]], ...]) -> Exclusions:
    """Those of a checkpoint, which may list every layer by name, with the answers given so far."""
    return Exclusions(entries, fused)


def equal_or_regex(name: str, target: str) -> bool:
    return _regex(target, name) if target.startswith("re:") else target == name


def match_pattern(pattern: str, name: str) -> bool:
    """re.match of a checkpoint's pattern. InputError when it is no regular expression."""
    return _compiled(pattern).match(name) is not None


def search_pattern(pattern: str, name: str) -> bool:
    """re.search of a checkpoint's pattern; one that is no regular expression matches nothing (AutoRound)."""
    try:
        return _compiled(pattern).search(name) is not None
    except InputError:
        return False


def _regex(target: str, name: str) -> bool:
    return match_pattern(target[3:], name)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"config.json: quantization_config: {pattern!r} is not a regular expression ({error})"
        ) from None


def _first(name: str, targets: Iterable[str]) -> str | None:
    return next((target for target in targets if equal_or_regex(name, target)), None)


def _agreed(name: str, parts: tuple[str, ...], matches: Callable[[str], bool]) -> bool:
    answers = {matches(part) for part in parts}
    if len(answers) > 1:
        raise reject(
            "quantization_alignment",
            f"Detected some but not all shards of {name} are quantized. All shards of fused layers to have the same "
            "precision.",
        )
    return answers.pop()
