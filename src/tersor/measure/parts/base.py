"""What every part of a report is."""

from pydantic import BaseModel, ConfigDict


class ReportPart(BaseModel):
    """A part of the report: immutable, without unknown keys, NaN or infinity (which JSON lacks)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
