"""The parts of a recipe that the host of Hugging Face folders supports."""

from tersor.recipe import Capabilities, Train

_WEIGHTS = "is not done to folders in the Hugging Face layout, whose weights alone are compressed"
_WIDTHS = (
    "is not done to folders in the Hugging Face layout, whose config.json has one width for all blocks: the target "
    "says what goes, such as `25% mlp`"
)
_BLOCKS = "is not done to folders in the Hugging Face layout, which are trained block by block, as `blocks` says"

# Of `activations` it supports only float; its plan rejects the rest, layer by layer.
FOLDER = Capabilities(
    host="a folder in the Hugging Face layout",
    takes={
        "quantize": frozenset(
            {"weights", "activations", "sparsity", "pruner", "fallback", "awq", "rotate", "rules", "keep"}
        ),
        "train": frozenset({"blocks"}),
        "prune": frozenset({"target", "score", "repair", "multiple", "most", "keep"}),
    },
    reasons={
        **dict.fromkeys(("equalize", "smooth", "smooth_alpha", "bias_correction", "correction_samples"), _WEIGHTS),
        **dict.fromkeys(("structure", "layers"), _WIDTHS),
        "rounds": "is for graphs; a folder is pruned in one pass over its blocks",
        "samples": "is for graphs; of a folder it is `samples` of compress_folder (--samples)",
        **dict.fromkeys((name for name in Train.model_fields if name != "blocks"), _BLOCKS),
    },
)
