"""The doctor's whole examination: the log read, the failure named, the launch found and corrected."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner import api
from planner.cli.cure import Cure, cure, launch_words, options_given
from planner.doctor.figures import logged_figures, with_derived
from planner.doctor.launch import LoggedLaunch, logged_launch
from planner.doctor.log import read_log
from planner.doctor.recognise import Diagnosis, diagnose


@dataclass(frozen=True, slots=True)
class Examination:
    """`words`: of the launch, empty where none is known. `figures`: of the log and derived, as texts. `cure`: None
    where nothing failed. `release`: of vLLM, that the command was corrected for."""

    diagnosis: Diagnosis
    launch: LoggedLaunch
    release: str
    words: tuple[str, ...] = ()
    figures: dict[str, str] = field(default_factory=dict)
    cure: Cure | None = None


def examine(text: str, asked: api.Request, command: str | None) -> Examination:
    """Everything that the doctor says of a text. `command`: the launch, where the user gives it beside the log."""
    log = read_log(text)
    diagnosis, launch = diagnose(log), logged_launch(log)
    words = launch_words(command or launch.command)
    if not diagnosis.findings:
        return Examination(diagnosis, launch, asked.version, tuple(words), logged_figures(log))
    finding = diagnosis.findings[0]
    given = options_given(words, asked.version) if words else {}
    figures = with_derived({**logged_figures(log), **finding.figures}, launch, given)
    remedy = cure(words, finding.failure, figures, asked, launch)
    return Examination(diagnosis, launch, asked.version, tuple(words), figures, remedy)
