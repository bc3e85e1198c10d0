"""From the version a user names to the entry that answers for it."""

from __future__ import annotations

import re
from functools import lru_cache

from planner.errors import InputError
from planner.releases.known import RELEASES
from planner.releases.release import Release, ReleaseChoice

OLDEST = (0, 8, 0)
_VERSION = re.compile(
    r"v?([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?((?:\.?(?:post|rc|dev|a|b)[0-9]*)*(?:\+[0-9A-Za-z.]+)?)"
)


@lru_cache(maxsize=64)
def release_for(version: str) -> ReleaseChoice:
    """The entry for `version` ("0.26.0", "v0.19", "0.26.1rc1.dev608").

    A release that is not entered borrows from the nearest entry by minor version (the older of two equally near),
    with a warning that says so. InputError for anything that is no version, or older than 0.8.
    """
    match = _VERSION.fullmatch(version.strip())
    if not match:
        raise InputError(f"--vllm-version {version!r} is not a vLLM version (write for example 0.26.0)")
    number = (int(match[1]), int(match[2]), int(match[3] or 0))
    if number < OLDEST:
        raise InputError(f"--vllm-version {version}: releases before 0.8 are not supported by this planner")
    by_version = {release.version: release for release in RELEASES}
    entry = by_version[nearest(number, tuple(by_version))]
    if version_number(entry.version) == number and not match[4]:
        return ReleaseChoice(requested=version, number=number, release=entry, warning=_unverified(entry))
    return ReleaseChoice(requested=version, number=number, release=entry, warning=_borrowed(version, entry))


def nearest(number: tuple[int, int, int], versions: tuple[str, ...]) -> str:
    """Of `versions` the nearest to `number`, the older of two equally near."""
    return min(versions, key=lambda version: (_distance(number, version_number(version)), version_number(version)))


def version_number(version: str) -> tuple[int, int, int]:
    """The three numbers of a full release version."""
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch


def _distance(left: tuple[int, int, int], right: tuple[int, int, int]) -> tuple[int, int, int]:
    """Patch numbers of different minor releases say nothing about their distance."""
    patch = abs(left[2] - right[2]) if left[:2] == right[:2] else 0
    return abs(left[0] - right[0]), abs(left[1] - right[1]), patch


def _unverified(entry: Release) -> str | None:
    if entry.evidence == "verified on hardware":
        return None
    return f"vLLM {entry.version}: figures are {entry.evidence}"


def _borrowed(version: str, entry: Release) -> str:
    return (
        f"vLLM {version} is not known to this planner: defaults and memory rules are borrowed from {entry.version} "
        f"({entry.evidence}), so every byte figure is approximate"
    )
