"""The report tables as pandas DataFrames, with the types that the schema states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from planner.report.schema import TABLES, Kind
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
