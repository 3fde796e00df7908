"""Open a folder with the library that is meant to read it, on the meta device: keys and shapes, no values."""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.architecture import import_transformers, model_class, open_class
from tersor.checkpoints.foreign.files import first_line
from tersor.checkpoints.sparse.layouts import VERSION, sparsity_of
from tersor.errors import CheckpointError
from tersor.process import logging_at, quiet
from tersor.words import said

# Packages that transformers needs for each `quant_method`, and without one.
_PACKAGES = {
    None: ("accelerate",),
    "compressed-tensors": ("accelerate", "compressed_tensors"),
    "gptq": ("accelerate", "optimum", "gptqmodel"),
    "awq": ("accelerate", "gptqmodel"),
}
# Methods whose reader computes while opening, so a failure on meta tensors proves nothing.
_COMPUTES = {"gptq", "awq"}
_PROBLEMS = {
    "missing_keys": "lacks {}, which it would initialize at random",
    "unexpected_keys": "does not know {}",
    "mismatched_keys": "expects another shape of {}",
}


def open_as_reader(config: Mapping[str, Any], tensors: Mapping[str, Tensor], known: Collection[str] = ()) -> list[str]:
    """Open a model as transformers does, without its values.

    Args:
        config: the content of config.json.
        tensors: the stored tensors, on the meta device.
        known: tensors that have no place in the model, in the original either.

    Returns:
        What could not be checked, as sentences.

    Raises:
        CheckpointError: transformers would find tensors missing, unknown or reshaped, or cannot open the folder.
    """
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    model = model_class(config)
    if model is None:
        return [said(
            "transformers has no class for this architecture, so the folder was not opened by another reader",
        )]
    if method not in _PACKAGES:
        return [said(
            "no library here reads the layout {layout}, so the folder was not opened by another reader",
            layout=method,
        )]
    lacking = [name for name in _PACKAGES[method] if importlib.util.find_spec(name) is None]
    if lacking:
        return [said(
            "the folder was not opened by its reader, transformers with {packages}: not installed here",
            packages=", ".join(lacking),
        )]
    if reason := _unopened(quantization):
        return [said("the folder was not opened by transformers: {reason}", reason=reason)]
    found, limits = _opened(model, config, tensors)
    for key, text in _PROBLEMS.items():
        names = sorted(set(_names(found.get(key, ()))) - set(known))
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(
                f"transformers, opening the result as {model.__name__}, {text.format(listed)}: keep these layers in "
                "float with a rule, or choose another layout"
            )
    return limits


def _opened(model: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    """What transformers reports about the keys, compressed or else dequantized, and the consequences for users."""
    quantization = config.get("quantization_config") or {}
    groups = list((quantization.get("config_groups") or {}).values())
    symmetric = all(group["weights"]["symmetric"] for group in groups)
    failures: list[Exception] = []
    for dequantize in [*([False] if symmetric else []), *([True] if len(groups) == 1 else [])]:
        try:
            found = _load(model, config, tensors, dequantize)
        except Exception as error:  # an error of another library, in any form
            failures.append(error)
            continue
        opens = said(
            "transformers opens this {kind} with CompressedTensorsConfig(dequantize=True) alone",
            kind=model.__name__,
        )
        return found, [opens] if failures else []
    if quantization.get("quant_method") in _COMPUTES:
        kind = type(failures[0]).__name__
        return {}, [said("the folder was not opened by its reader, which needs values for it ({kind})", kind=kind)]
    raise CheckpointError(
        f"transformers cannot open the result as {model.__name__} ({first_line(failures[0])}): quantize layers of one "
        "kind alike, or choose another layout"
    ) from failures[0]


def _unopened(quantization: Mapping[str, Any]) -> str:
    """Why transformers does not open compressed-tensors of this kind, which the report states as its limit."""
    if (sparse := sparsity_of({"quantization_config": quantization})) is not None:
        return said(
            "compressed-tensors reads {layout} up to {version} only, and would now initialize these weights at random; "
            "Tersor opens it",
            layout=sparse, version=VERSION,
        )
    if quantization.get("tersor_transposed"):
        return said("its quantized weights belong to no nn.Linear; Tersor opens it")
    groups = list((quantization.get("config_groups") or {}).values())
    if len(groups) > 1 and not all(group["weights"]["symmetric"] for group in groups):
        return said("its asymmetric weights have several formats; Tersor opens it")
    return ""


def _load(model: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dequantize: bool) -> dict[str, Any]:
    transformers = import_transformers()
    options = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    with quiet(), logging_at(logging.CRITICAL, "transformers"), _silent(), torch.random.fork_rng(devices=[]):
        _, found = open_class(
            model,
            config,
            state_dict=dict(tensors),
            device_map={"": "meta"},
            attn_implementation="eager",  # keys and shapes are the same, and it exists on every machine
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # in that case it names them
            **options,
        )
    return found


def _names(found: Iterable[Any]) -> Iterator[str]:
    """The names of keys, or of keys with two different shapes."""
    for key in found:
        if not isinstance(key, tuple):
            yield str(key)
            continue
        name, ours, theirs = key
        # For readers that dequantize, rows on the meta device are as long as the words that contain them.
        if tuple(ours[:-1]) != tuple(theirs[:-1]) or not 0 <= ours[-1] - theirs[-1] < 32:
            yield str(name)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress progress bars, and messages of compressed-tensors about meta tensors."""
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("compressed_tensors") is not None:
            from compressed_tensors.compressors import BaseCompressor  # noqa: F401 - it sets up its logger
            from loguru import logger

            logger.disable("compressed_tensors")
            stack.callback(logger.enable, "compressed_tensors")
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
