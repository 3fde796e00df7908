"""The recipe options that the host of eager models supports."""

from tersor.recipe import Capabilities

_FOLDERS = "is for folders in the Hugging Face layout, which tersor.compress_folder compresses"
_CALIBRATED = "needs calibration, and tersor.quantize_dynamic does not calibrate: use tersor.compress"

MODULES = Capabilities(
    host="tersor.quantize_dynamic",
    takes={"quantize": frozenset({"weights", "activations", "rules", "keep"})},
    reasons={
        **dict.fromkeys(("awq", "rotate", "sparsity", "pruner", "fallback"), _FOLDERS),
        **dict.fromkeys(("equalize", "smooth", "smooth_alpha", "bias_correction", "correction_samples"), _CALIBRATED),
    },
)
