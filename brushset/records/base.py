"""What a record is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable, closed; JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")
