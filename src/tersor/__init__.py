"""Tersor: trained PyTorch networks made smaller and faster, and proved so by measurement."""

from tersor.process import importing

with importing():
    from tersor import metrics
    from tersor.errors import TersorError
    from tersor.numerics import FORMATS, QTensor, QuantSpec
    from tersor.pipeline.compressed import Compressed
    from tersor.pipeline.folder.compress import compress_folder
    from tersor.pipeline.graph.compress import compress
    from tersor.pipeline.graph.outliers import outliers
    from tersor.pipeline.graph.recording import convert, prepare
    from tersor.pipeline.load import load
    from tersor.pipeline.modules.dynamic import dynamic_plan, quantize_dynamic
    from tersor.pipeline.modules.loops import prune_iteratively
    from tersor.recipe import Quantization, Recipe, Rule
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
    "load",
    "metrics",
    "outliers",
    "prepare",
    "prune_iteratively",
    "quantize_dynamic",
]
