"""The errors that Tersor raises; each message names the cause, the value and the remedy."""

from tersor.inert import one_line


class TersorError(Exception):
    r"""Base class of all Tersor errors; the message gives the cause and the remedy.

    It is one line, and names from untrusted files cannot act on the terminal that shows it.

    >>> print(TersorError("the layer conv\x1b[2J\n1"))
    the layer conv\x1b[2J 1

    Attributes:
        system: errno and message of the system, if a file could not be written.
    """

    system: tuple[int, str] | None = None

    def __str__(self) -> str:
        return one_line(super().__str__())


class TaskError(TersorError):
    """The task (model, example, data or evaluation) is invalid."""


class CaptureError(TersorError):
    """The model cannot be captured as a graph."""


class MetricError(TersorError):
    """Scores, labels or texts are invalid for a metric, or a library of `tersor[metrics]` is missing."""


class NumericsError(TersorError):
    """A tensor, range or specification cannot be used for quantization."""


class CalibrationError(TersorError):
    """The calibration data cannot be used: empty, of the wrong shape, or not finite."""


class RecipeError(TersorError):
    """A recipe cannot be read, matches nothing, or is not supported by the engine."""


class RewriteError(TersorError):
    """A rewrite is not applicable to a network, or would change its outputs."""


class EngineError(TersorError):
    """An engine is not installed, or does not support a network."""


class SavedFolderError(TersorError):
    """A saved folder is incomplete or altered, would be overwritten, or cannot be written."""


class CheckpointError(TersorError):
    """A checkpoint is incomplete or damaged, or its layout cannot store a weight."""
