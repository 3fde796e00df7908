"""The report of compressing a language model, as stored in report.json."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tersor.checkpoints.foreign.files import checked, in_folder, read_json, read_object
from tersor.errors import TersorError
from tersor.measure.formatting import number_text
from tersor.measure.parts.base import ReportPart
from tersor.measure.parts.folder_pruning import FolderPruning
from tersor.measure.parts.gates import Zeros
from tersor.measure.perplexity import Divergence, TextScore
from tersor.measure.schema import Bytes, Environment, Seconds
from tersor.terminal import Shown
from tersor.words import _

Error = Annotated[float, Field(ge=0)]


class WeightRecord(ReportPart):
    """One weight: how it is stored, and the relative error of its layer's output, in power.

    `error` and `rtn_error` (round to nearest over the full range) are None without calibration. `format` is None for a
    weight that stays in float; `note` says why. `damping` is the share of the mean of diag H that was added to it.
    """

    name: str
    shape: tuple[int, ...]
    format: str | None
    method: str
    bytes: Bytes
    error: Error | None = None
    rtn_error: Error | None = None
    tokens: int = 0
    damping: Error | None = None
    seconds: Seconds = 0.0
    note: str | None = None


class Training(ReportPart):
    """What training gave, on calibration text that was held out.

    `name` is that of a block, and the errors are powers relative to its output, the mean over tokens. It is empty for
    the scales of the whole model, and the errors are divergences from the float model in nats per token. `curve` has
    one error an epoch, and `kept` is the epoch that is kept; 0: none improved on what was there before.
    """

    name: str
    before: Error
    after: Error
    curve: tuple[float, ...]
    kept: int


class Decoding(ReportPart):
    """Tokens per second at batch 1 in an engine."""

    engine: str
    tokens_per_second: float
    original_tokens_per_second: float | None = None


class LanguageReport(Shown, ReportPart):
    """All measurements; a score that was not requested is None.

    `bits_per_weight` includes the scales and zero points of the quantized weights. `peak_bytes` is the process's peak
    resident memory, imports included.
    """

    kind: Literal["language"] = "language"
    model: str
    architecture: str
    recipe: str
    layout: str
    environment: Environment
    seed: int
    calibration: str | None
    original_bytes: Bytes
    compressed_bytes: Bytes
    bits_per_weight: float | None
    original: TextScore | None = None
    compressed: TextScore | None = None
    divergence: Divergence | None = None
    decoding: tuple[Decoding, ...] = ()
    weights: tuple[WeightRecord, ...]
    training: tuple[Training, ...] = ()
    zeros: Zeros | None = None
    pruning: tuple[FolderPruning, ...] = ()
    warnings: tuple[str, ...] = ()
    timings_s: dict[str, Seconds]
    peak_bytes: Bytes

    @property
    def compression(self) -> float:
        """Original bytes over compressed bytes."""
        return self.original_bytes / self.compressed_bytes

    def headline(self) -> str:
        """One line with size and perplexity."""
        before, after = self.original_bytes / 1e6, self.compressed_bytes / 1e6
        size = _(
            "{ratio} smaller ({before} → {after} MB)",
            ratio=f"{self.compression:.2f}x", before=f"{before:.3g}", after=f"{after:.3g}",
        )  # fmt: skip
        if self.original is None or self.compressed is None:
            return _("; ").join((size, _("perplexity not measured (pass --valid TEXT, or evaluate= in Python)")))
        before, after = self.original.perplexity, self.compressed.perplexity
        change = number_text((after / before - 1) * 100, "+.2f")
        perplexity = _(
            "perplexity {before} → {after} ({change} %)", before=f"{before:.4g}", after=f"{after:.4g}", change=change
        )
        return _("; ").join((size, perplexity))

    def to_json(self) -> str:
        """The text of report.json."""
        return self.model_dump_json(indent=1) + "\n"


def read_language_report(path: Path | str) -> LanguageReport:
    """Read the report of a folder or a report.json.

    Raises:
        TersorError: it is missing or malformed.
    """
    path = in_folder(Path(path), "report.json", TersorError)
    content = read_json(path, TersorError, "pass a folder that `compress` wrote")
    what = f"{path}: not the report of a language model"
    return checked(LanguageReport, content, what, TersorError, "compress again")


def is_language_report(path: Path | str) -> bool:
    """Whether a folder's report is that of a language model."""
    try:
        return read_object(in_folder(Path(path), "report.json", TersorError), TersorError, "").get("kind") == "language"
    except TersorError:
        return False
