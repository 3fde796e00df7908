"""How much of a language model goes: smaller numbers in its configuration, and the dimensions that follow them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from tersor.checkpoints.architecture import model_class, parameter_shapes
from tersor.errors import CaptureError, RecipeError
from tersor.pipeline.folder.cuts.config import (
    CHOSEN,
    COLUMNS,
    EXPERTS,
    GROUPS,
    HEADS,
    LAYERS,
    Part,
    parts_of,
)
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.recipe import Prune

Kind = Literal["mlp", "heads", "experts", "layers"]
Shapes = Mapping[str, tuple[int, ...]]
Sites = dict[tuple[str, int], tuple[int, int]]
TARGETS = ("mlp", "heads", "experts", "layers", "parameters")
_WORDS = {"mlp": "columns", "heads": "key-value heads", "experts": "experts", "layers": "layers"}


@dataclass(frozen=True, eq=False)
class Axis:
    """One number of the configuration that shrinks, and the dimensions of parameters that follow it.

    Args:
        key: its name in the configuration.
        kind: what it counts.
        part: the configuration that states it.
        before, after: how many there are: columns, groups of heads with one key-value head, or experts.
        edits: the values of the configuration that change with it.
        sites: the parameters in the blocks and their dimensions, with their sizes before and after.
        parts: the sizes of queries, keys and values, where ``kind`` is heads.
    """

    key: str
    kind: Kind
    part: Part
    before: int
    after: int
    edits: Mapping[str, Any]
    sites: Sites
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class CutPlan:
    """What a step `prune` takes from a folder.

    Args:
        kind: what goes.
        axes: the numbers that shrink; none for layers.
        config: the content of config.json of the smaller model; with layers, of one without the last ones.
        layers: how many are left.
        part: the configuration that states how many layers there are.
    """

    kind: Kind
    axes: tuple[Axis, ...]
    config: dict[str, Any]
    layers: int
    part: Part


def plan_cut(step: Prune, metamodel: MetaModel) -> CutPlan:
    """What goes from a folder, decided from shapes alone.

    Raises:
        RecipeError: the target is not for folders, takes nothing or everything, or the model has no such parts.
    """
    what, amount = step.amount
    if what not in TARGETS:
        raise RecipeError(
            f"the target {step.target!r} is not for a folder in the Hugging Face layout, which takes `25% mlp`, "
            "`25% heads`, `25% experts`, `25% layers` and `1.3x parameters`"
        )
    if step.keep and what != "layers":
        raise RecipeError(
            f"`keep` is for the target `layers` of a folder: its config.json has one width for all blocks, so "
            f"{', '.join(step.keep)} cannot stay wider; leave it out"
        )
    if model_class(metamodel.folder.config) is None:
        raise RecipeError(
            f"{metamodel.folder.path}: transformers has no class for its architecture, so no smaller config.json can "
            "be checked; a folder of such a model is not pruned"
        )
    return _Planner(step, metamodel).plan(what, amount)


class _Planner:
    """Tries smaller numbers in a configuration, and sees which shapes follow them."""

    def __init__(self, step: Prune, metamodel: MetaModel) -> None:
        self.step, self.metamodel = step, metamodel
        self.config = metamodel.folder.config
        self.parts = parts_of(self.config)
        self.shapes: Shapes = {n: tuple(p.shape) for n, p in metamodel.model.named_parameters()}
        self.inside = f"{metamodel.blocks.path}."
        self.name = type(metamodel.model).__name__

    def plan(self, what: str, amount: float) -> CutPlan:
        count = len(self.metamodel.blocks)
        part = next((p for p in reversed(self.parts) if (n := p.number(LAYERS)) and n[1] == count), self.parts[0])
        if what == "layers":
            left = self._left("layers", f"{self.inside[:-1]} of {self.name}", count, amount)
            return CutPlan("layers", (), without_layers(part, count, range(left)), left, part)
        makers: dict[str, Callable[[float], list[Axis]]] = {
            "mlp": self._columns, "heads": self._heads, "experts": self._experts, "parameters": self._parameters,
        }  # fmt: skip
        axes = makers[what](amount)
        config: dict[str, Any] = dict(self.config)
        for axis in axes:
            config = Part(config, axis.part.path, None).edited(axis.edits)
        self._check(axes, config)
        return CutPlan(axes[0].kind, tuple(axes), config, count, part)

    def _check(self, axes: list[Axis], config: Mapping[str, Any]) -> None:
        """Check that nothing else changes, and that every tensor that is cut is stored as the model reads it."""
        sites: Sites = {}
        for axis in axes:
            sites |= axis.sites
        found = self._differences(config)
        if found is None or found.keys() != sites.keys():
            raise RecipeError(f"{self.name}: {', '.join(a.key for a in axes)} do not change its shapes independently")
        cut = {name for name, _ in sites}
        for stored in self.metamodel.slices.values():
            if stored.parameter in cut and not stored.whole:
                raise RecipeError(
                    f"{stored.name} is to be cut, and transformers turns or mixes it on loading: such folders are not "
                    "pruned; save the model again with save_pretrained of this version of transformers"
                )

    # ------------------------------------------------ what shrinks
    def _columns(self, share: float) -> list[Axis]:
        axes = list(self._column_axes(lambda key, size: self._left("mlp", f"{key} {size}", size, share)))
        if not axes:
            raise RecipeError(
                f"{self.name} has no number in its config.json that its MLPs' width follows ({', '.join(COLUMNS[:4])} "
                "and others were tried), so no columns of its MLPs can go"
            )
        return axes

    def _column_axes(self, after: Callable[[str, int], int]) -> Iterator[Axis]:
        known = set[tuple[str, int]]()
        for part in self.parts:
            for key, size in part.numbers(COLUMNS):
                left = after(key, size)
                sites = self._followers(part, {key: left})
                if sites and not known & sites.keys():
                    known |= sites.keys()
                    yield Axis(key, "mlp", part, size, left, {key: left}, sites)

    def _heads(self, share: float) -> list[Axis]:
        for part in self.parts:
            heads, groups = part.number(HEADS), part.number(GROUPS)
            if heads is None:
                continue
            count = groups[1] if groups else heads[1]
            each = getattr(part.values, "head_dim", None)
            each = each if isinstance(each, int) and each > 0 else part.width // heads[1]
            if heads[1] % count:
                raise RecipeError(
                    f"{self.name} has {heads[1]} query heads for {count} key-value heads, which do not divide them: "
                    "none can go"
                )
            if count == 1:
                raise RecipeError(
                    f"all {heads[1]} query heads of {self.name} share one key-value head, and a key-value head goes "
                    "with all its queries: none can go; prune `mlp` or `layers`"
                )
            left = self._left("heads", f"{groups[0] if groups else heads[0]} {count}", count, share)
            queries = heads[1] // count
            edits = [self._fewer(n, queries, each, heads[0], groups and groups[0]) for n in range(count)]
            if sites := self._followers(part, edits[left]):
                sizes = heads[1] * each, count * each, count * each
                return [Axis(heads[0], "heads", part, count, left, edits[left], sites, sizes)]
            if found := [n for n in range(count - 1, 0, -1) if self._followers(part, edits[n])]:
                raise RecipeError(
                    f"the target {self.step.target!r} leaves {left} of {count} key-value heads, and transformers takes "
                    f"no such {self.name}; it takes {', '.join(map(str, found))}: ask for "
                    f"`{100 * (1 - found[0] / count):.3g}% heads`"
                )
        raise RecipeError(
            f"the heads of {self.name} cannot be fewer: transformers derives their width from that of the residual "
            "stream and their number, and reads no head_dim; prune `mlp` or `layers`"
        )

    @staticmethod
    def _fewer(left: int, queries: int, each: int, heads: str, groups: str | None) -> dict[str, int]:
        """The numbers of a configuration with so many key-value heads, under their names in it."""
        return {heads: left * queries} | ({groups: left} if groups else {}) | {"head_dim": each}

    def _experts(self, share: float) -> list[Axis]:
        for part in self.parts:
            for key, count in part.numbers(EXPERTS):
                left, chosen = self._left("experts", f"{key} {count}", count, share), part.number(CHOSEN)
                if chosen is not None and left < chosen[1]:
                    raise RecipeError(
                        f"{left} of {count} experts would be left, and the router of {self.name} chooses {chosen[1]} "
                        f"for each token ({chosen[0]}): ask for less than {100 * (1 - (chosen[1] - 1) / count):.0f}%"
                    )
                if sites := self._followers(part, {key: left}):
                    return [Axis(key, "experts", part, count, left, {key: left}, sites)]
        raise RecipeError(f"{self.name} has no experts whose number its config.json states; prune `mlp` or `layers`")

    def _parameters(self, times: float) -> list[Axis]:
        """The columns that leave 1/times of all parameters, the same share of each MLP."""
        whole = sum(map(prod, self.shapes.values()))
        tried = list(self._column_axes(lambda key, size: self._rounded(size, size - max(1, size // 4))))
        if not tried:
            self._columns(0.5)  # which says so
        top = max(tried, key=lambda axis: axis.before)

        def at(left: int) -> dict[str, int]:
            return {a.key: self._rounded(a.before, a.before * left / top.before) for a in tried}

        def parameters(left: int) -> int:
            widths, found = at(left), dict(self.shapes)
            for axis in tried:
                for (name, dim), (before, _) in axis.sites.items():
                    shape = list(found[name])
                    shape[dim] = before * widths[axis.key] // axis.before
                    found[name] = tuple(shape)
            return sum(map(prod, found.values()))

        least = max(1, top.before - int(self.step.most * top.before + 1e-9))
        fits = [n for n in range(top.before - 1, least - 1, -1) if parameters(n) * times <= whole]
        if not fits:
            reach = whole / parameters(least)
            raise RecipeError(
                f"the target {self.step.target!r} takes columns of MLPs, and {100 * (1 - least / top.before):.0f} % of "
                f"those of {self.name} give {reach:.3g}x: ask for less, raise `most`, or prune `layers` or `heads` too"
            )
        widths = at(fits[0])
        return list(self._column_axes(lambda key, size: widths.get(key, size - 1)))

    # ------------------------------------------------ helpers
    def _followers(self, part: Part, edits: Mapping[str, Any]) -> Sites:
        """The dimensions in the blocks that follow these values; none if anything else changes, or nothing."""
        found = self._differences(part.edited(edits))
        return found if found and all(name.startswith(self.inside) for name, _ in found) else {}

    def _differences(self, config: Mapping[str, Any]) -> Sites | None:
        """The dimensions that differ in the model of another configuration; None if it is no smaller version."""
        try:
            others = parameter_shapes(config)
        except CaptureError:
            return None
        sites: Sites = {}
        for name, shape in self.shapes.items():
            other = others.get(name, shape)  # of tied weights, one name is kept
            if len(other) != len(shape) or any(b > a for a, b in zip(shape, other, strict=True)):
                return None
            sites |= {(name, k): (a, b) for k, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b}
        return sites

    def _left(self, kind: Kind, what: str, count: int, share: float) -> int:
        """How many of ``count`` are left, rounded to the step's multiple."""
        left, words = self._rounded(count, count * (1 - share)), _WORDS[kind]
        if left >= count or count < 2:
            raise RecipeError(
                f"the target {self.step.target!r} takes none of {count} {words} ({what}): ask for more, at least "
                f"{100 / max(count, 1):.3g}%, or a smaller `multiple`"
            )
        if left < 1 or count - left > self.step.most * count + 1e-9:
            raise RecipeError(
                f"the target {self.step.target!r} leaves {max(left, 0)} of {count} {words} ({what}), and at most "
                f"{self.step.most:.0%} may go (`most`): ask for less"
            )
        return left

    def _rounded(self, count: int, left: float) -> int:
        multiple = min(self.step.multiple, count)
        # To the nearest multiple; halves stay.
        return min(count, multiple * int(left / multiple + 0.5))


def without_layers(part: Part, count: int, kept: Any) -> dict[str, Any]:
    """The configuration with only some of ``count`` layers, and its lists of one value for each."""
    found, kept = part.number(LAYERS), list(kept)
    if found is None or found[1] != count:
        raise RecipeError(
            f"config.json does not state the number of its {count} blocks ({', '.join(LAYERS)} were tried), so no "
            "layer can go"
        )
    lists = {k: [v[n] for n in kept] for k, v in part.lists(count)}
    return part.edited({found[0]: len(kept)} | lists)
