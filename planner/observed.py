"""The base of records of what another program says: the driver, a server's metrics."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Observed(BaseModel):
    """A frozen, strict record: a misspelt field or a float where bytes belong is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True, protected_namespaces=())
