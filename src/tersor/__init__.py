"""Tersor: turn trained PyTorch models into smaller, faster ones, with measured results."""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tersor import metrics
    from tersor.errors import TersorError
    from tersor.numerics import FORMATS, QTensor, QuantSpec
    from tersor.pipeline.compressed import Compressed
    from tersor.pipeline.folder.compress import compress_folder
    from tersor.pipeline.folder.trained.lora import merge_lora
    from tersor.pipeline.graph.compress import compress
    from tersor.pipeline.graph.finetune import finetune
    from tersor.pipeline.graph.outliers import outliers
    from tersor.pipeline.graph.pruning.named.eager import narrow
    from tersor.pipeline.graph.recording import convert, prepare, prepare_qat
    from tersor.pipeline.load import load
    from tersor.pipeline.modules.dynamic import dynamic_plan, quantize_dynamic
    from tersor.pipeline.modules.loops import prune_iteratively
    from tersor.pipeline.trainable import trainable
    from tersor.recipe import Quantization, Recipe, Rule
    from tersor.search.optimize import optimize
    from tersor.task import Task

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "Compressed",
    "QTensor",
    "QuantSpec",
    "Quantization",
    "Recipe",
    "Rule",
    "Task",
    "TersorError",
    "compress",
    "compress_folder",
    "convert",
    "dynamic_plan",
    "finetune",
    "load",
    "merge_lora",
    "metrics",
    "narrow",
    "optimize",
    "outliers",
    "prepare",
    "prepare_qat",
    "prune_iteratively",
    "quantize_dynamic",
    "trainable",
]

# Silent unless a program, or `--debug`, listens.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Name: the module that defines it, imported when the name is first used. PyTorch alone takes a second to import.
_DEFINED_IN = {
    "FORMATS": "tersor.numerics",
    "Compressed": "tersor.pipeline.compressed",
    "QTensor": "tersor.numerics",
    "QuantSpec": "tersor.numerics",
    "Quantization": "tersor.recipe",
    "Recipe": "tersor.recipe",
    "Rule": "tersor.recipe",
    "Task": "tersor.task",
    "TersorError": "tersor.errors",
    "compress": "tersor.pipeline.graph.compress",
    "compress_folder": "tersor.pipeline.folder.compress",
    "convert": "tersor.pipeline.graph.recording",
    "dynamic_plan": "tersor.pipeline.modules.dynamic",
    "finetune": "tersor.pipeline.graph.finetune",
    "load": "tersor.pipeline.load",
    "merge_lora": "tersor.pipeline.folder.trained.lora",
    "narrow": "tersor.pipeline.graph.pruning.named.eager",
    "optimize": "tersor.search.optimize",
    "outliers": "tersor.pipeline.graph.outliers",
    "prepare": "tersor.pipeline.graph.recording",
    "prepare_qat": "tersor.pipeline.graph.recording",
    "prune_iteratively": "tersor.pipeline.modules.loops",
    "quantize_dynamic": "tersor.pipeline.modules.dynamic",
    "trainable": "tersor.pipeline.trainable",
}

if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """A public name, or a module of the package (``tersor.metrics``)."""
        from tersor.process import importing

        try:
            with importing():
                if name in _DEFINED_IN:
                    return getattr(importlib.import_module(_DEFINED_IN[name]), name)
                module = f"{__name__}.{name}"
                if importlib.util.find_spec(module) is None:
                    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
                return importlib.import_module(module)
        except ModuleNotFoundError as error:
            from tersor.packages import of_every_installation

            raise of_every_installation(error) or error from error

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
