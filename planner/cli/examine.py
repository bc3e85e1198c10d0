"""The doctor's whole examination: the log read, the failure named, the launch found and corrected."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner import api
from planner.cli.cure import Cure, cure, launch_words, options_given
from planner.doctor.figures import logged_figures, with_derived
from planner.doctor.launch import LoggedLaunch, logged_launch
from planner.doctor.log import read_log
from planner.doctor.recognise import Diagnosis, diagnose
from planner.errors import OutsideError
from planner.units import format_gib

_IDLE_SHARE = 20


@dataclass(frozen=True, slots=True)
class Examination:
    """`words`: of the launch, empty where none is known. `figures`: of the log and derived, as texts. `cure`: None
    where nothing failed. `release`: of vLLM, that the command was corrected for. `holders`: who holds memory of this
    machine's cards now, where that is the failure."""

    diagnosis: Diagnosis
    launch: LoggedLaunch
    release: str
    words: tuple[str, ...] = ()
    figures: dict[str, str] = field(default_factory=dict)
    cure: Cure | None = None
    holders: tuple[str, ...] = ()


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
    holders = _holders(asked) if finding.failure.bottleneck == "startup_memory" else ()
    return Examination(diagnosis, launch, asked.version, tuple(words), figures, remedy, holders)


def _holders(asked: api.Request) -> tuple[str, ...]:
    """A sentence for each process on a card, through NVML; for a card whose processes are hidden, its memory in use."""
    from planner.sources.gpu_survey import survey
    from planner.sources.hardware_catalog import load_hardware_catalog

    try:
        gpus = survey(load_hardware_catalog(asked.hardware_catalogs)).gpus
    except OutsideError:
        return ()
    found = []
    for gpu in gpus:
        for process in gpu.processes:
            size = "memory not told" if process.used_bytes is None else format_gib(process.used_bytes)
            found.append(f"GPU {gpu.index}: process {process.pid} ({process.name}), {size}")
        if not gpu.processes and gpu.used_bytes > gpu.nvml_total_bytes // _IDLE_SHARE:
            found.append(f"GPU {gpu.index}: {format_gib(gpu.used_bytes)} in use by processes that are not shown here")
    return tuple(found)
