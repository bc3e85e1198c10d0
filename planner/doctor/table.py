"""Every failure that the doctor knows, in order of telling: what stands first is tried first."""

from __future__ import annotations

from planner.doctor.configuration_failures import CONFIGURATION_FAILURES
from planner.doctor.environment_failures import ENVIRONMENT_FAILURES
from planner.doctor.failure import Failure
from planner.doctor.media_failures import MEDIA_FAILURES
from planner.doctor.memory_failures import MEMORY_FAILURES

FAILURES: tuple[Failure, ...] = (
    *MEDIA_FAILURES, *CONFIGURATION_FAILURES, *MEMORY_FAILURES, *ENVIRONMENT_FAILURES,
)  # fmt: skip


def failure(failure_id: str) -> Failure:
    """The failure that goes by an id. KeyError for none."""
    return {item.id: item for item in FAILURES}[failure_id]
