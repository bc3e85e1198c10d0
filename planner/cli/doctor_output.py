"""What the doctor says, for eyes and for programs."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from planner.cli.cure import Cure
from planner.cli.examine import Examination
from planner.doctor.figures import fill_in
from planner.doctor.recognise import Finding
from planner.doctor.table import FAILURES
from planner.memory.result import Estimate

SCHEMA = "vplan.doctor/1"
_MAX_LINE = 300


def doctor_json(result: Examination) -> str:
    """The document vplan.doctor/1 (docs/doctor.md lists its fields)."""
    findings = result.diagnosis.findings
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "status": result.diagnosis.status,
        "vllm_version_of_log": result.launch.version,
        "vllm_version": result.release,
        "card": result.launch.card,
        "command": (" ".join(result.words) and result.launch.command) or None,
        "failure": _finding(findings[0], result) if findings else None,
        "also": [{"id": one.failure.id, "line": one.line} for one in findings[1:]],
        "figures": result.figures,
        "on_this_machine": list(result.holders),
        "corrected": _corrected(result.cure),
        "looked_for": [item.id for item in FAILURES] if result.diagnosis.status == "unknown" else [],
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def doctor_text(result: Examination) -> str:
    """Cause, figures, cure, corrected command; or what was looked for."""
    status = result.diagnosis.status
    if status == "healthy":
        return "no failure in it: the engine of this log started"
    if status == "unknown":
        return _unknown_text()
    return _failure_text(result)


def _failure_text(result: Examination) -> str:
    finding = result.diagnosis.findings[0]
    item, lines = finding.failure, []
    lines.append(f"{item.title}  [{item.id}]")
    lines.append(f"  line {finding.line}: {finding.text[:_MAX_LINE]}")
    lines.append("")
    lines.append(item.cause)
    lines += _facts(finding, result)
    if result.holders:
        lines += ["", "on this machine now:", *(f"  {words}" for words in result.holders)]
    lines.append("")
    lines.append("cure:")
    lines += [f"  - {step.text}" for step in item.cure if step.text]
    others = [
        one.failure.title
        for one in result.diagnosis.findings[1:]
        if one.failure.severity != "symptom" and one.line != finding.line
    ]
    if others:
        lines += ["", f"also in the log: {'; '.join(others)}"]
    return "\n".join(lines) + "\n" + _cure_text(result)


def _cure_text(result: Examination) -> str:
    remedy = result.cure
    assert remedy is not None
    if not remedy.command:
        return f"\nno corrected command: {remedy.unchecked}\n"
    text = ""
    if remedy.before is not None and remedy.before.per_gpu is not None:
        text += "\nthe ledger of the launch as it was:\n" + _ledger(remedy.before)
    text += f"\ncorrected for vLLM {result.release}"
    text += f" ({'; '.join(remedy.done)})" if remedy.done else " (nothing to change in the command itself)"
    text += f":\n{remedy.command}\n"
    after = remedy.after
    if after is None:
        return text + f"not checked: {remedy.unchecked}\n"
    if after.starts:
        assert after.kv_cache is not None
        return text + (
            f"vplan estimate on {after.gpus}: starts, KV cache of {after.kv_cache.capacity_tokens:,} tokens, "
            f"{after.kv_cache.max_concurrency:.1f} requests of full length\n"
            + "".join(f"warning: {one}\n" for one in after.warnings)
        )
    assert after.rejection is not None
    fixes = "".join(f"  try: {fix}\n" for fix in after.rejection.fix)
    verdict = f"still rejected ({after.rejection.bottleneck}): {after.rejection.message}"
    return text + f"vplan estimate on {after.gpus or 'any card'}: {verdict}\n{fixes}"


def _ledger(estimate: Estimate) -> str:
    from planner.report.text import console_for, ledger_table

    assert estimate.per_gpu is not None
    buffer = StringIO()
    console_for(buffer, color=False).print(ledger_table(estimate.per_gpu))
    return buffer.getvalue()


def _facts(finding: Finding, result: Examination) -> list[str]:
    figures = {**result.figures, **finding.figures}
    return [text for text in (fill_in(fact, figures) for fact in finding.failure.facts) if text is not None]


def _unknown_text() -> str:
    lines = ["no failure that is known here, and no start of the engine without an error after it. Looked for:"]
    lines += [f"  {item.id}: {item.title}" for item in FAILURES]
    lines.append("Give the whole log from its first line (VLLM_LOGGING_LEVEL=DEBUG says more).")
    return "\n".join(lines)


def _finding(finding: Finding, result: Examination) -> dict[str, Any]:
    item = finding.failure
    return {
        "id": item.id,
        "title": item.title,
        "severity": item.severity,
        "bottleneck": item.bottleneck,
        "line": finding.line,
        "text": finding.text,
        "cause": item.cause,
        "facts": _facts(finding, result),
        "cure": [step.text for step in item.cure if step.text],
        "versions": list(item.versions),
    }


def _corrected(remedy: Cure | None) -> dict[str, Any] | None:
    if remedy is None or not remedy.command:
        return None
    return {
        "command": remedy.command,
        "steps": list(remedy.done),
        "verdict": None if remedy.after is None else remedy.after.verdict,
        "unchecked": remedy.unchecked,
        "before": _document(remedy.before),
        "after": _document(remedy.after),
    }


def _document(estimate: Estimate | None) -> Any:
    return None if estimate is None else json.loads(estimate.to_json())
