"""The recipe options that the graph host (whole networks, captured as graphs) supports."""

from tersor.recipe import Capabilities, Prune, Train

_FOLDERS = "is for folders in the Hugging Face layout, which tersor.compress_folder compresses"

GRAPH = Capabilities(
    host="a network captured as a graph",
    takes={
        "quantize": frozenset(
            {
                "weights", "activations", "scope", "equalize", "smooth", "smooth_alpha", "bias_correction",
                "correction_samples", "rules", "keep",
            }
        ),
        "prune": frozenset(Prune.model_fields),
        "train": frozenset(Train.model_fields) - {"blocks"},
    },
    reasons=dict.fromkeys(("awq", "rotate", "sparsity", "pruner", "fallback", "blocks"), _FOLDERS),
)  # fmt: skip
