"""The report tables as pandas DataFrames, with the types that the schema states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from planner.memory.assess import Assessment
from planner.memory.result import Estimate
from planner.report.compare import compare_rows
from planner.report.matrix import Matrix
from planner.report.media_rows import media_rows
from planner.report.rows import breakdown_rows, ledger_rows, load_rows, variant_rows
from planner.report.schema import TABLES, Kind
from planner.report.selection import Selection
from planner.report.tables import Cell

_DTYPES: dict[Kind, str] = {"text": "string", "int": "Int64", "float": "Float64", "bool": "boolean"}


def frame(name: str, rows: Sequence[Mapping[str, Cell]]) -> pd.DataFrame:
    """Rows of one table of planner.report.schema. Missing figures are pandas.NA."""
    table = TABLES[name]
    columns = {
        column.name: pd.Series([row[column.name] for row in rows], dtype=_DTYPES[column.kind])
        for column in table.columns
    }
    return pd.DataFrame(columns)


def ledger(assessment: Assessment) -> pd.DataFrame:
    """Both ledgers of every rank, a row a term, in bytes."""
    return frame("ledger", ledger_rows(assessment))


def load(assessment: Assessment, lengths: Sequence[int], concurrencies: Sequence[int]) -> pd.DataFrame:
    """Bytes when `concurrency` requests of `max_model_len` tokens are held, a row a pair."""
    return frame("load", load_rows(assessment, lengths, concurrencies))


def breakdown(assessment: Assessment, by: str) -> pd.DataFrame:
    """The weights by "layer", "module", "dtype" or "rank", in bytes of one GPU."""
    return frame("breakdown", breakdown_rows(assessment, by))


def variants(flag: str, assessments: Sequence[tuple[str, Assessment]]) -> pd.DataFrame:
    """Plans that differ in one flag, a row a value: (the value as text, what it gives)."""
    return frame("variants", variant_rows(flag, assessments))


def media(assessment: Assessment) -> pd.DataFrame:
    """Bytes of the vision encoder against size and number of images; empty where the model sees none."""
    return frame("media", media_rows(assessment))


def sweep(rows: Sequence[Mapping[str, Cell]]) -> pd.DataFrame:
    """The rows of api.sweep_table, a pair of values each."""
    return frame("sweep", rows)


def select(selection: Selection) -> pd.DataFrame:
    """A hardware selection, best first, a row a card and count."""
    return frame("select", selection.rows)


def matrix(found: Matrix) -> pd.DataFrame:
    """The fewest of each card that hold a workload, a row a model and card."""
    return frame("matrix", found.rows())


def compare(plans: Sequence[tuple[str, Estimate]]) -> pd.DataFrame:
    """Labelled plans side by side, a row a plan and term."""
    return frame("compare", compare_rows(plans))
