"""The recipe options that the graph host (whole networks, captured as graphs) supports."""

from tersor.recipe import Capabilities

_FOLDERS = "is for folders in the Hugging Face layout, which tersor.compress_folder compresses"

GRAPH = Capabilities(
    host="a network captured as a graph",
    takes={
        "quantize": frozenset(
            {
                "weights", "activations", "equalize", "smooth", "smooth_alpha", "bias_correction", "correction_samples",
                "rules", "keep",
            }
        )
    },
    reasons=dict.fromkeys(("awq", "rotate", "sparsity", "pruner", "fallback"), _FOLDERS),
)  # fmt: skip
