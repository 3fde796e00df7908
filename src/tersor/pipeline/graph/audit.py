"""The audit: compare the planned precision of every layer with the precision that the engine computed in."""

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.engines.base import Executed
from tersor.measure.headline import is_fallback
from tersor.network.sites import Plan, PlannedLayer
from tersor.words import said


@dataclass(frozen=True)
class Audited:
    """One planned layer and its executed precision; ``executed`` is None if the engine does not report the layer.

    ``note`` says what became of it, ``rule`` names the engine's rule for it, and ``operator`` the engine's operator
    that computes this layer above all.
    """

    layer: PlannedLayer
    executed: str | None
    note: str | None = None
    rule: str | None = None
    operator: str | None = None

    @property
    def fell_back(self) -> bool:
        """Whether the layer was planned in integers and computed in float."""
        return is_fallback(self.layer.planned, self.executed)

    def explained(self, engine: str) -> str:
        """The note in the report: the plan's reason if the layer ran as planned, otherwise the engine's.

        >>> layer = PlannedLayer("up", "up", "conv1d", "int8", "weight of conv1d", "int8")
        >>> Audited(layer, "fp32").explained("openvino"), Audited(layer, "int8").explained("openvino")
        ('openvino: no reason known', 'weight of conv1d')
        """
        narrowed = self.layer.weight_format is not None and is_fallback(self.executed, self.layer.planned)
        if not (self.fell_back or narrowed):
            return self.note or self.rule or self.layer.reason
        why = self.rule or said("{engine}: no reason known", engine=engine)
        return f"{why}; {self.note}" if self.note else why


def audit(
    plan: Plan, rows: Sequence[Executed], unaudited: str = said("the engine reports no operators")
) -> list[Audited]:
    """One row for every planned layer.

    An activation function fused into its neighbour is ``fused``; a fused sum computes in its neighbour's precision.

    Args:
        rows: the operators that the engine executed (``Engine.audit``).
        unaudited: the note of every layer if the engine does not report executed operators (``Engine.unaudited``).
    """
    if not rows:
        return [Audited(layer, None, unaudited) for layer in plan.layers]
    layers = {layer.node: layer for layer in plan.layers}
    owner: dict[str, tuple[Executed, bool]] = {}
    for row in rows:
        known = [n for n in row.nodes if n in layers]
        main = next((n for n in known if _same_kind(layers[n], row)), known[0] if known else None)
        for name in known:
            if name not in owner or (name == main and not owner[name][1]):
                owner[name] = (row, name == main)
    return [_audited(layer, owner.get(layer.node)) for layer in plan.layers]


def _same_kind(layer: PlannedLayer, row: Executed) -> bool:
    kind = row.op.lower()
    return any(word in kind for word in ("conv", "connected", "gemm", "matmul")) == (
        layer.weight_format is not None
    )


def _audited(layer: PlannedLayer, found: tuple[Executed, bool] | None) -> Audited:
    if found is None:
        # A layer without an operator in the compiled model has been merged into a neighbour.
        return Audited(layer, "fused", said("merged into its neighbours by the engine's own optimizer"))
    row, main = found
    if layer.planned == "fused" and not main:
        return Audited(layer, "fused", _part_of(row))
    part = None if main else _part_of(row)
    return Audited(layer, row.precision, part, row.note, row.name if main else None)


def _part_of(row: Executed) -> str:
    return said("part of {operator}", operator=f"{row.op} {row.name}")
