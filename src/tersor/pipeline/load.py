"""Load anything that Tersor wrote, ready to run."""

import warnings
from pathlib import Path

from tersor.arguments import path_of
from tersor.engines.options import check_threads
from tersor.errors import EngineError, SavedFolderError
from tersor.inert import plain
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.folder.deployed import load_folder
from tersor.pipeline.folder.load import is_language
from tersor.pipeline.graph.deployed import load_network
from tersor.turns import in_turn
from tersor.words import said


@in_turn
def load(folder: str | Path, threads: int | None = None, engine: str | None = None) -> Compressed:
    """Load a saved folder; checksums are verified, and nothing in it is executed.

    Args:
        folder: written by ``Compressed.save`` or ``tersor compress``; or a language model in the Hugging Face layout,
            quantized (by Tersor or others, as compressed-tensors, GPTQ or AWQ) or not.
        threads: of the engine, at most two for each logical processor; by default all processors.
            In PyTorch, ``torch.set_num_threads`` decides.
        engine: for a language model, ``torch`` (the default), an engine with a decoder such as ``openvino``, or
            ``auto``: the first such engine that supports the model, else PyTorch, with a UserWarning that says why.
            Any other network runs in the engine that it was compressed for; ``Compressed.compile`` moves it to another.

    Returns:
        A ``Compressed``: call it with the network's inputs; for a language model it also has
        ``generate(input_ids, max_new_tokens=…)``, and in torch, ``model`` is the transformers model itself.

    Raises:
        SavedFolderError, CheckpointError: a file is missing, truncated or altered.
        EngineError: its engine is not installed, does not support it, or is not the one it was compressed for.
        CaptureError: a language model of an unknown kind, or one that cannot be turned into a graph for the engine.
    """
    folder = path_of("folder", folder, SavedFolderError)
    check_threads(threads)
    if is_language(folder):
        found = load_folder(folder, engine, threads)
        if (reason := found.deployed.skip_reason) is not None:
            warnings.warn(plain(said(
                "{folder} runs in {engine}, as {reason}",
                folder=folder, engine=found.engine, reason=reason,
            )), stacklevel=3)  # beyond `in_turn`
        return found
    found = load_network(folder, threads)
    if engine not in (None, "auto", found.engine):
        raise EngineError(f"{folder} was compressed for {found.engine}, not for {engine}; compress it again for that")
    return found
