"""The recipe options that the host of eager models supports."""

from tersor.recipe import Capabilities, Train

_FOLDERS = "is for folders in the Hugging Face layout, which tersor.compress_folder compresses"
_CALIBRATED = "needs calibration, and tersor.quantize_dynamic does not calibrate: use tersor.compress"

_CORRECTIONS = ("equalize", "smooth", "smooth_alpha", "bias_correction", "correction_samples")

MODULES = Capabilities(
    host="tersor.quantize_dynamic",
    takes={"quantize": frozenset({"weights", "activations", "rules", "keep"})},
    reasons={
        **dict.fromkeys(("awq", "rotate", "sparsity", "pruner", "fallback"), _FOLDERS),
        **dict.fromkeys(_CORRECTIONS, _CALIBRATED),
    },
)
# What tersor.trainable supports for a model without a Task; all that it quantizes are layers, as `scope: layers` asks.
STUDENTS = Capabilities(
    host="tersor.trainable for a model without a Task",
    takes={"quantize": MODULES.takes["quantize"] | {"scope"}, "train": frozenset(Train.model_fields)},
    reasons={**MODULES.reasons, **dict.fromkeys(_CORRECTIONS, "needs calibration: give a tersor.Task, not the model")},
)
