"""Every error that Tersor raises on purpose; each text names the thing, the value and the remedy."""


class TersorError(Exception):
    """Base of all errors raised on purpose; its text says what is wrong and what to do."""


class TaskError(TersorError):
    """The task (model, example, data or judge) cannot be used as it is."""


class CaptureError(TersorError):
    """The model cannot be turned into a graph."""


class MetricError(TersorError):
    """Scores, labels or texts that a metric cannot judge, or a library of `tersor[metrics]` that is absent."""


class NumericsError(TersorError):
    """A tensor, a range or a specification that no quantizer can use."""


class CalibrationError(TersorError):
    """The calibration data cannot be used: empty, of the wrong shape, or not finite."""


class RecipeError(TersorError):
    """A recipe that cannot be read, matches nothing, or cannot be expressed by the engine."""


class RewriteError(TersorError):
    """A rewrite that a network does not allow, or that would change what it computes."""


class EngineError(TersorError):
    """An engine that is absent or refuses a network."""


class SavedFolderError(TersorError):
    """A saved folder that is incomplete, altered, or would be overwritten."""


class CheckpointError(TersorError):
    """A checkpoint that is incomplete or altered, or a weight that its layout cannot hold."""
