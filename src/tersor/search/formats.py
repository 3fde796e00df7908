"""Which layers stay in float: what each loses as integers, what it costs as a float, and the best choice for a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

from tersor.engines import engine as find_engine
from tersor.measure import interleave
from tersor.measure.choosing.device import alone_on_the_device
from tersor.measure.choosing.sensitivity import LayerCost
from tersor.measure.latency import quantile
from tersor.network.network import Network
from tersor.pipeline.graph.batches import Batch, exactly, passing, seeded
from tersor.pipeline.graph.measuring import single
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.pruning.timed.candidates import SAMPLES, plain
from tersor.pipeline.graph.quantize import GraphHost
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune, Quantize, Recipe, Rule
from tersor.search.sensitivity import sensitivity
from tersor.solvers.structured.allocation import Option, allocate
from tersor.task import Task
from tersor.words import _

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""How much longer a call may take, as shares of the first candidate's latency: one choice for each."""
RATED, TOGETHER = 12, 6
"""Of how many layers all is measured, and how many networks are timed side by side."""
ROUNDS, SECONDS = 11, 0.02

Compile = Callable[[Network], Any]


@dataclass(frozen=True)
class Floats:
    """What layers cost in integers and in float.

    Args:
        layers: those that were measured, worst first.
        slower: by how much a call takes longer with this layer in float, as a share.
    """

    layers: tuple[LayerCost, ...]
    slower: tuple[float, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """For a file."""
        return [x.to_dict() | {"slower": slower} for x, slower in zip(self.layers, self.slower, strict=True)]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> "Floats":
        """From ``to_json``."""
        slower = [float(row["slower"]) for row in rows]
        return cls(tuple(LayerCost(**{k: v for k, v in row.items() if k != "slower"}) for row in rows), tuple(slower))

    def choices(self) -> list[tuple[str, ...]]:
        """The layers that stay in float for each of ``SHARES``, without repetitions.

        >>> def layer(name, loss):
        ...     return LayerCost(name, "linear", "ffn", "int8", 1, None, loss)
        >>> Floats((layer("a", 0.3), layer("b", 0.2)), (0.09, 0.01)).choices()
        [('b',), ('a', 'b')]
        """
        units: list[list[Option]] = [
            [{"loss": layer.cost}, {"slower": max(0.0, slower)}]
            for layer, slower in zip(self.layers, self.slower, strict=True)
        ]
        found = list[tuple[str, ...]]()
        for share in SHARES if units else ():
            chosen = allocate(units, "loss", {"slower": share})
            names = tuple(layer.name for layer, k in zip(self.layers, chosen or (), strict=True) if k)
            if names and names not in found:
                found.append(names)
        return found


def floats(
    task: Task, recipe: Recipe, engine: str, compiled: Compile, samples: int, stages: Stages, *, target: str | None
) -> Floats:
    """Rate the layers, and time the worst of them in float, each kind of layer alone.

    Args:
        compiled: makes a quantized network run in the engine.
        samples: by which layers are rated.
    """
    steps = tuple(step for step in recipe.steps if not isinstance(step, Prune))
    bare = recipe.model_copy(update={"steps": steps})
    rated = sensitivity(task, bare, engine, samples=samples, measured=RATED, progress=False)
    worst = sorted((layer for layer in rated.layers if layer.divergence is not None), key=lambda x: -x.cost)
    network = captured(task)
    with seeded(recipe.seed):
        batch: Batch = next(iter(exactly(passing(task, network), SAMPLES, network.dynamic_batch)))
    sample = replace(task, calibration=lambda: [batch])
    host, quick = GraphHost(find_engine(engine).policy(target)), plain(bare.quantize)

    def made(names: Sequence[str]) -> Any:
        rules = tuple(Rule(layer=escape(name), keep="fp32") for name in names)
        step: Quantize = quick.model_copy(update={"rules": (*quick.rules, *rules)})
        subject = Subject(task.model, host, network, source=network, seed=recipe.seed)
        found = host.quantize(step, subject, sample, Stages(False)).network
        assert found is not None
        return compiled(found)

    kinds = dict[tuple[str, str, int], list[LayerCost]]()
    for layer in worst:
        kinds.setdefault((layer.op, layer.kind, layer.macs), []).append(layer)
    inputs, first, times = single(network), made(()), dict[str, float]()
    groups = list(kinds.values())
    with stages.stage("measure", _("measuring layers in float"), len(groups)) as bar:
        for start in range(0, len(groups), TOGETHER):
            part = groups[start : start + TOGETHER]
            runners = {"first": first, **{str(k): made([x.name for x in group]) for k, group in enumerate(part)}}
            calls = {name: (lambda r=runner: r(*inputs)) for name, runner in runners.items()}
            with alone_on_the_device():
                found = interleave(calls, rounds=ROUNDS, min_time=SECONDS)
            for k, group in enumerate(part):
                pairs = zip(found[str(k)].rounds, found["first"].rounds, strict=True)
                more = quantile(sorted(a / b for a, b in pairs), 0.5) - 1
                times |= {layer.name: more / len(group) for layer in group}
                bar.advance()
    return Floats(tuple(worst), tuple(times[layer.name] for layer in worst))
