"""Float weights of a folder stored without their zeros, and what zeros save."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tersor.checkpoints.layouts import LAYOUTS
from tersor.checkpoints.sparse.layouts import SPARSE_LAYOUTS, sparsity_config
from tersor.engines.zeros import Weights, condition
from tersor.errors import RecipeError
from tersor.measure.gates import deflated
from tersor.measure.language import LanguageReport
from tersor.measure.parts.gates import Zeros
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.plan import WeightPlan


class SparseWeights:
    """The pruned weights of a folder, on their way to its files.

    Args:
        layout: a name in ``SPARSE_LAYOUTS``, for those that stay float; None: they stay dense.
        plans: of all weights.

    Attributes:
        bytes: of each weight that was stored without zeros, by its name in the plan.
        zeros: how many each pruned float weight has, likewise.
    """

    def __init__(self, layout: str | None, plans: Sequence[WeightPlan]) -> None:
        self.layout = layout
        self.pruned = [p for p in plans if p.sparsity is not None]
        self.floats = {p.slice.name: p for p in self.pruned if p.spec is None}
        self.bytes: dict[str, int] = {}
        self.zeros: dict[str, int] = {}

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that take the place of these in a file."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            plan = self.floats.get(name)
            parts = None
            if plan is not None:
                self.zeros[plan.name] = int((tensor == 0).sum())
                if self.layout is not None and tensor.ndim == 2 and name.endswith(".weight"):
                    parts = SPARSE_LAYOUTS[self.layout].encode(name, tensor)
            if plan is not None and parts is not None:
                self.bytes[plan.name] = sum(t.numel() * t.element_size() for t in parts.values())
            found |= {name: tensor} if parts is None else parts
        return found

    def config(self, config: Mapping[str, Any], metamodel: MetaModel) -> dict[str, Any]:
        """The content of config.json, with how the sparse weights are stored."""
        if not self.bytes or self.layout is None:
            return dict(config)
        linear = [n for n, m in metamodel.model.named_modules() if isinstance(m, nn.Linear)]
        plans = [p for p in self.floats.values() if p.name in self.bytes]
        ignore = sorted(set(linear) - {p.slice.parameter.removesuffix(".weight") for p in plans})
        share = sum(self.zeros[p.name] for p in plans) / sum(math.prod(p.shape) for p in plans)
        return {**config, "quantization_config": sparsity_config(self.layout, round(share, 6), ignore)}

    def counted(self, report: LanguageReport, folder: Path) -> LanguageReport:
        """The report with the bytes of the weights as they are stored in a folder, and with what zeros save."""
        records = {w.name: w for w in report.weights}
        saved = sum(records[name].bytes - size for name, size in self.bytes.items())
        weights = tuple(w.model_copy(update={"bytes": self.bytes.get(w.name, w.bytes)}) for w in report.weights)
        changes: dict[str, Any] = {"weights": weights, "compressed_bytes": report.compressed_bytes - saved}
        if self.bytes:
            changes["layout"] = self.layout
        # What could not be solved stays as it was.
        pruned = [p for p in self.pruned if records[p.name].format]
        if pruned:
            changes["zeros"] = self._zeros(pruned, sorted(folder.glob("*.safetensors")))
        return report.model_copy(update=changes)

    def _zeros(self, pruned: Sequence[WeightPlan], files: Sequence[Path]) -> Zeros:
        groups = {p.sparsity.group for p in pruned if p.sparsity is not None}
        group = groups.pop() if len(groups) == 1 else None
        pattern = "" if group is None else f"{group[0]}:{group[1]}"
        counts = [math.prod(p.shape) for p in pruned]
        # Of weights that are quantized, zeros are those that were asked for; rounding makes more.
        asked = [round(p.sparsity.share * n) if p.sparsity else 0 for p, n in zip(pruned, counts, strict=True)]
        packed, estimated = deflated(files)
        bits = [p.spec.format.bits if p.spec else 8 * p.dtype.itemsize for p in pruned]
        return Zeros(
            weights=sum(counts),
            zeros=sum(self.zeros.get(p.name, n) for p, n in zip(pruned, asked, strict=True)),
            pattern=pattern,
            bytes=sum(path.stat().st_size for path in files),
            deflated=packed,
            estimated=estimated,
            condition=condition("torch", Weights([p.shape for p in pruned], bits, pattern, ())),
        )


def layouts_of(layout: Any) -> tuple[str, str | None]:
    """The layout of codes, and that of float weights with zeros, or None.

    Raises:
        RecipeError: there is no such layout.

    >>> layouts_of("gptq"), layouts_of("sparse-bitmask")
    (('gptq', None), ('compressed-tensors', 'sparse-bitmask'))
    """
    if isinstance(layout, str) and layout in SPARSE_LAYOUTS:
        return "compressed-tensors", layout
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise RecipeError(f"no layout {layout!r:.80}; one of {', '.join((*LAYOUTS, *SPARSE_LAYOUTS))}")
    return layout, None


def check_sparse(layout: str | None, plans: Sequence[WeightPlan]) -> None:
    """Refuse a sparse layout for what it cannot store.

    Raises:
        RecipeError: naming the layer.
    """
    if layout is None:
        return
    if quantized := next((p for p in plans if p.spec is not None), None):
        raise RecipeError(
            f"{quantized.name} becomes {quantized.spec}, and {layout} stores float weights alone: choose the layout "
            "compressed-tensors, or set the format of `weights` to fp32"
        )
    if not any(p.sparsity for p in plans):
        raise RecipeError(f"no weight is pruned, so {layout} has no zeros to leave out: add `sparsity` to the recipe")
    other = next((p for p in plans if p.sparsity is not None and p.sparsity.group != (2, 4)), None)
    if SPARSE_LAYOUTS[layout].structure == "2:4" and other is not None:
        raise RecipeError(
            f"{other.name} gets {other.sparsity} zeros, and {layout} stores 2:4 alone: choose the layout "
            "sparse-bitmask, or set `sparsity` to 2:4"
        )
