"""What a report tells of structured pruning: how wide each layer was and is, and what could not go."""

from typing import Annotated

from pydantic import Field

from tersor.measure.parts.base import ReportPart
from tersor.words import _, plural

Count = Annotated[int, Field(ge=0)]


class Width(ReportPart):
    """Layers whose outputs go together, such as those of a residual stream: how many they had, and have."""

    layers: tuple[str, ...]
    before: Count
    after: Count


class Left(ReportPart):
    """A layer that stayed as wide as it was, and why."""

    layer: str
    why: str


class Zeros(ReportPart):
    """A layer's weights, and how many of them are zero."""

    layer: str
    weights: Count
    zeros: Count


class Pruning(ReportPart):
    """One step `prune`, or a step `train` that made weights zero.

    `target` is what the recipe asked for; multiply-accumulates are those of one sample of the example. `fixed` are
    layers none of whose outputs can go, `whole` those that the score could not rate. `branches` went as a whole, by
    the name of their last layer; `ranks` are of layers that could become two thinner ones. `faster` is measured in the
    engine, against the network before the step, both made by the same steps behind it; None if that was not asked.
    `zeros` are layers whose single weights could become zero, if the target counts these.
    """

    target: str
    macs_before: Count
    macs_after: Count
    parameters_before: Count
    parameters_after: Count
    widths: tuple[Width, ...] = ()
    fixed: tuple[Left, ...] = ()
    whole: tuple[Left, ...] = ()
    branches: tuple[str, ...] = ()
    ranks: tuple[Width, ...] = ()
    faster: Annotated[float, Field(gt=0)] | None = None
    zeros: tuple[Zeros, ...] = ()


def summary(pruning: Pruning) -> str:
    """What went, in a sentence without capital and stop.

    >>> summary(Pruning(target="2x macs", macs_before=4_000_000, macs_after=2_000_000, parameters_before=1500,
    ...                 parameters_after=600, widths=(Width(layers=("a",), before=8, after=4),)))
    'pruned: 4 M → 2 M multiply-accumulates (2.00x fewer), 1.5 k → 600 parameters; 1 layer or group is narrower'
    """
    if pruning.zeros:
        weights, zeros = (sum(getattr(z, key) for z in pruning.zeros) for key in ("weights", "zeros"))
        return plural(
            "pruned: {share} of {weights} weights in {count} layer are zero",
            "pruned: {share} of {weights} weights in {count} layers are zero",
            len(pruning.zeros),
            share=f"{100 * zeros / max(1, weights):.1f} %",
            weights=count_text(weights),
        )
    narrower, thinner = (sum(w.after < w.before for w in widths) for widths in (pruning.widths, pruning.ranks))
    told = plural(
        "pruned: {macs} multiply-accumulates ({times}x fewer), {parameters} parameters; {count} layer or group is "
        "narrower",
        "pruned: {macs} multiply-accumulates ({times}x fewer), {parameters} parameters; {count} layers or groups are "
        "narrower",
        narrower,
        macs=f"{count_text(pruning.macs_before)} → {count_text(pruning.macs_after)}",
        times=f"{pruning.macs_before / max(1, pruning.macs_after):.2f}",
        parameters=f"{count_text(pruning.parameters_before)} → {count_text(pruning.parameters_after)}",
    )
    more = [
        plural("{count} branch went", "{count} branches went", len(pruning.branches)) if pruning.branches else "",
        plural("{count} layer became two thinner ones", "{count} layers became two thinner ones", thinner)
        if thinner else "",
        _("{times}x as fast in the engine as before", times=f"{pruning.faster:.2f}") if pruning.faster else "",
    ]  # fmt: skip
    return "; ".join([told, *filter(None, more)])


def count_text(value: int) -> str:
    """A large number in three digits.

    >>> count_text(999), count_text(125_485_696), count_text(2_000_000)
    ('999', '125 M', '2 M')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def names_of(width: Width) -> str:
    """The layers of a group, the first ones by name.

    >>> names_of(Width(layers=("a", "b", "c", "d"), before=8, after=4))
    'a, b and 2 more'
    """
    first, more = ", ".join(width.layers[:2]), len(width.layers) - 2
    return first if more <= 0 else _("{layers} and {count} more", layers=first, count=more)
