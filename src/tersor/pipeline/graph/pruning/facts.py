"""What is known of each group before anything goes: weights, inputs, gradients, as a ``GroupProblem``."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tersor.errors import CalibrationError, RecipeError
from tersor.network.groups.found import Group, Site, Structure
from tersor.network.network import CONVOLUTIONS, Network, op_name, title, walk
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.pruning.padding import real, real_tokens
from tersor.pipeline.graph.pruning.rows import Layer, layers_of, some_rows
from tersor.solvers.structured import GroupProblem, Moments, Reader

ROWS = 2**14


class Facts:
    """Everything that scores need, of all groups.

    Args:
        structure: the groups.
        batches: inputs.
        needs: of the score: ``inputs``, ``outputs``, ``gradients``.
        seed: of what is drawn.
    """

    def __init__(
        self, structure: Structure, batches: list[Batch], needs: frozenset[str], seed: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.structure, self.seed = structure, seed
        self.needs = needs
        self.layers = {layer.weight: layer for layer in layers_of(structure.network)}
        self.unseen = self._unseen()
        self.grams: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.zeros: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.changes: dict[Site, list[Tensor]] = {}
        if "inputs" in needs:
            self._see_inputs(batches, on_batch)
        if needs & {"outputs", "gradients"}:
            self._see_gradients(batches, on_batch)

    def problem(self, group: Group) -> GroupProblem:
        """The problem of one group.

        Raises:
            RecipeError: the score rates atoms by the layers that read them, and something else reads these, too.
        """
        network = self.structure.network
        for operator in {self.unseen[atom] for atom in group.atoms.tolist() if atom in self.unseen}:
            if "inputs" in self.needs:
                raise RecipeError(
                    f"{group.name}: {operator} reads them, too, which the score cannot rate; take another score, such "
                    "as fisher"
                )
        written, slopes, squares, zeros = list[Tensor](), list[Tensor](), list[Tensor](), None
        changes = list[Tensor]()
        norms, statistics = _norm_weights(network), _statistics(network)
        readers = []
        for layer, columns in self.readers(group):
            name = layer.weight
            readers.append(Reader(layer.matrix(network), columns, self.grams.get(name), self.rows.get(name)))
        for (name, dim), found in group.sites.items():
            tensor, places = network.tensor(name), torch.from_numpy(found)
            if not tensor.is_floating_point():
                continue
            if self._reads(name, dim):
                zeros = self.zeros[name][places].mean(1) if name in self.zeros else zeros
            elif name in norms:
                slopes.append(tensor[places])
            elif name not in statistics:
                written.append(_taken(tensor, dim, places))
                if name in self.squares:
                    squares.append(_taken(self.squares[name], dim, places))
                    changes.append(torch.stack(self.changes[name, dim])[:, places].sum(2))
        scales = torch.cat(slopes, 1) if slopes else None
        whole = bool(written) and len(squares) == len(written)
        return GroupProblem(
            group.name, tuple(written), scales, tuple(readers), tuple(squares) if whole else (),
            torch.stack(changes).sum(0) if whole else None, zeros, self.seed,
        )  # fmt: skip

    def readers(self, group: Group) -> Iterator[tuple[Layer, Tensor]]:
        """The layers that sum over a group's atoms, and the columns of each atom: ``[atoms, each]``."""
        for (name, dim), found in group.sites.items():
            if self._reads(name, dim):
                layer, weight = self.layers[name], self.structure.network.tensor(name)
                each = 1 if layer.turned else weight[0, 0].numel()
                yield layer, (torch.from_numpy(found)[:, :, None] * each + torch.arange(each)).flatten(1)

    def _reads(self, name: str, dim: int) -> bool:
        layer = self.layers.get(name)
        return layer is not None and dim == layer.columns

    def _unseen(self) -> dict[int, str]:
        """Atoms that an operator sums over whose inputs and weight are no rows and matrix, and its name."""
        seen = {layer.node.name for layer in self.layers.values()}
        flow, found = self.structure.flow, dict[int, str]()
        for operator, cells in flow.sums:
            if operator not in seen:
                for root in np.unique(flow.atoms.roots(cells)).tolist():
                    found |= dict.fromkeys(flow.atoms.atoms_of(root), operator)
        return found

    # ------------------------------------------------ what runs
    def _see_inputs(self, batches: list[Batch], on_batch: Callable[[], None]) -> None:
        network = self.structure.network
        sites = {site for group in self.structure.groups for site in group.sites}
        wanted = {w for w, dim in sites if w in self.layers and dim == self.layers[w].columns}
        readers: dict[str, list[Layer]] = {}
        for name in sorted(wanted):
            readers.setdefault(self.layers[name].source.name, []).append(self.layers[name])
        moments = {w: Moments(self.layers[w].matrix(network).shape[1]) for w in wanted}
        zeros = dict[str, list[Tensor]]()

        def see(node: fx.Node, value: Any) -> None:
            for layer in readers.get(node.name, ()):
                rows = layer.inputs(network, value)
                if layer.node.target not in CONVOLUTIONS:
                    rows = rows[real(reading, value)]
                moments[layer.weight].add(rows[some_rows(rows, ROWS, self.seed)])
                there = layer.outputs(value)[real(reading, value, layer.channels)]
                zeros.setdefault(layer.weight, []).append((there == 0).float().mean(0))

        for reading in batches:
            walk(network, reading, see)
            on_batch()
        for name, found in moments.items():
            if not found.finite:
                raise CalibrationError(
                    f"{title(self.layers[name].node)}: its inputs on the calibration data are NaN or infinite: look "
                    "for bad samples"
                )
        centred = {name: m.centred() for name, m in moments.items()}
        self.grams = {name: found[2] for name, found in centred.items()}
        self.means = {name: found[0] for name, found in centred.items()}
        self.zeros = {name: torch.stack(found).mean(0) for name, found in zeros.items()}

    def _see_gradients(self, batches: list[Batch], on_batch: Callable[[], None]) -> None:
        network = self.structure.network
        names = {layer.node.name: w for w, layer in self.layers.items()}
        sites = {site for group in self.structure.groups for site in group.sites}
        samples = 0
        for batch in batches:
            watched, leaves, out = _run(network, batch, set(names))
            loss = _surprise([real_tokens(batch, y) for y in out], self.seed + samples)
            if not loss.requires_grad:
                raise RecipeError(
                    "the network returns no floating-point values that its weights decide, so there are no gradients "
                    "to score by; take the score magnitude or wanda"
                )
            tensors = [*watched.values(), *leaves.values()]
            found = torch.autograd.grad(loss, tensors, allow_unused=True)
            samples += len(out[0])
            for node, gradient in zip(watched, found[: len(watched)], strict=True):
                layer = self.layers[names[node]]
                if gradient is not None:
                    squares = layer.outputs(gradient.square()).sum(0)
                    self.rows[layer.weight] = self.rows.get(layer.weight, 0) + squares
            for name, gradient in zip(leaves, found[len(watched) :], strict=True):
                if gradient is not None:
                    # Those of drawn predictions have mean 0: the square of their sum estimates the sum of squares.
                    self.squares[name] = self.squares.get(name, 0) + gradient.square()
                    product = (gradient * leaves[name]).detach()
                    for dim in {dim for at, dim in sites if at == name}:
                        change = product.movedim(dim, 0).flatten(1).sum(1) if product.ndim > 1 else product
                        self.changes.setdefault((name, dim), []).append(change)
            on_batch()
        self.rows = {name: rows / max(1, samples) for name, rows in self.rows.items()}
        self.squares = {name: squares / max(1, samples) for name, squares in self.squares.items()}
        self.changes = {at: [c / max(1, samples) ** 0.5 for c in found] for at, found in self.changes.items()}


def _run(network: Network, batch: Batch, watch: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """Run a network with gradients: the watched values, the network's floating-point tensors, the outputs."""
    fixed = _statistics(network)
    learned = {n: t for n, t in network.tensors() if t.is_floating_point() and n not in fixed}
    leaves = {n: t.detach().clone().requires_grad_() for n, t in learned.items()}
    watched: dict[str, Tensor] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in watch:
            watched[node.name] = value

    results = walk(network, batch, see, tensors=leaves, gradients=True)
    return watched, leaves, [t for t in results if isinstance(t, Tensor) and t.is_floating_point()]


def _surprise(outputs: list[Tensor], seed: int) -> Tensor:
    """A loss whose gradients square to the Fisher matrix: scores of classes against classes drawn from them.

    Outputs that are no scores of classes are taken for means of a normal distribution.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for out in outputs:
        if not out.isfinite().all():
            raise CalibrationError(
                "the network returns values on the calibration data that are NaN or infinite: look for bad samples, or "
                "for an operator such as a logarithm that they take out of its range"
            )
        if out.ndim == 2 and out.shape[1] > 1:
            drawn = torch.multinomial(out.detach().softmax(1), 1, generator=generator)[:, 0]
            total = total + torch.nn.functional.cross_entropy(out, drawn, reduction="sum")
        else:
            noise = torch.randn(out.shape, generator=generator)
            spread = float(out.detach().std(correction=0))
            total = total + (out * noise).sum() / (spread or 1.0)
    return total


def _taken(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    """The values at an atom's places: [atoms, values]."""
    found = tensor.detach().movedim(dim, 0)[places]
    return found.reshape(len(places), -1).float()


def _norm_weights(network: Network) -> set[str]:
    """The scales of BatchNorms."""
    norms = [n for n in network.operators() if op_name(n) == "batch_norm"]
    return {str(n.args[1].target) for n in norms if isinstance(n.args[1], fx.Node) and n.args[1].op == "get_attr"}


def _statistics(network: Network) -> set[str]:
    """Means and variances of BatchNorms, which are not learned."""
    found, left = set[str](), [a for n in network.operators() if op_name(n) == "batch_norm" for a in n.args[3:5]]
    while left:
        node = left.pop()
        if isinstance(node, fx.Node):
            left += node.all_input_nodes  # of one that is computed
            found |= {str(node.target)} if node.op == "get_attr" else set()
    return found
