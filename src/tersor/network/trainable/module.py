"""A network as a plain nn.Module: parameters under the model's own names, quantizers among its submodules."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.errors import TaskError
from tersor.network.trainable.folding import Folded, folded_weight, oriented
from tersor.network.trainable.graphs import TAPS, Graphs, Watching, Write
from tersor.task import batch_size
from tersor.training.student import LatentWeight

QUANTIZERS = "quantizers"
DEVICE = "batchnorm_frozen"
"""A buffer that every trainable network has, which lies where the network lies."""


class Trainable(nn.Module):
    """A captured network that trains like any module, and becomes a Network again.

    Parameters and buffers have the model's own names, each once; the quantizers are ``quantizers.*``. While training,
    BatchNorm uses the statistics of the batch; in eval mode, and once ``freeze_batchnorm`` was called, the forward pass
    is that of the deployed network, with BatchNorm folded. It is called like the model and returns what that returns.

    ``copy.deepcopy``, ``pickle``, ``state_dict``, ``torch.compile``, autocast, DistributedDataParallel and
    ``torch.optim.swa_utils.AveragedModel`` work as with any module.
    """

    batchnorm_frozen: Tensor
    _context: Any = None  # where it comes from, for tersor.compress
    accepts_loss_kwargs = False  # for transformers.Trainer: forward takes the model's arguments alone

    def __init__(self, graphs: Graphs, tensors: Mapping[str, Tensor], quantizers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._graphs = graphs
        self._frozen = False
        self.register_buffer(DEVICE, torch.tensor(False))
        self.add_module(TAPS, nn.Module())
        for name, tensor in tensors.items():
            owner, leaf = self._owner(name)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(leaf, tensor)
            else:
                owner.register_buffer(leaf, tensor)
        for name, module in quantizers.items():
            owner, leaf = self._owner(name)
            owner.add_module(leaf, module)
        self._generate()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The results of the model, in its structure.

        Raises:
            TaskError: the network has a fixed batch size, and the inputs have another one.
        """
        inputs = self._inputs(args, kwargs)
        return self._result(self._graphs.function(self._kind, self)(self, *inputs))

    def watched(self, see: Callable[[str, Any], None], *args: Any, **kwargs: Any) -> Any:
        """The results of the model, computed operator by operator.

        Args:
            see: called with the name of each input and operator, in order, and its value.
        """
        graph = getattr(self._graphs, self._kind)
        return self._result(Watching(self, graph, see).run(*self._inputs(args, kwargs)))

    def freeze_batchnorm(self, frozen: bool = True) -> "Trainable":
        """Keep the running statistics from now on: training goes on through the deployed, folded form."""
        self.batchnorm_frozen.fill_(frozen)
        self._frozen = frozen
        return self

    def checkpoint(self, depth: int = 2) -> "Trainable":
        """Compute the values of submodules again in the backward pass instead of keeping them: less memory, more time.

        Gradients and BatchNorm's statistics are the same. ``torch.compile`` decides itself what it computes again.

        Args:
            depth: of the submodules, ``layer1.0`` for 2; 0 keeps all values again.
        """
        self._graphs = replace(self._graphs, depth=depth)
        self._generate()
        return self

    def tap(self, name: str) -> nn.Module:
        """An identity module behind the operator, or the last one of the module, of that name, for forward hooks.

        Raises:
            TaskError: there is no such operator or module.
        """
        taps, leaf = self.get_submodule(TAPS), name.replace(".", "/")
        if leaf not in dict(taps.named_children()):
            if not all(any(_at(n, name) for n in g.nodes) for g in (self._graphs.train, self._graphs.evaluate)):
                raise TaskError(
                    f"the network has no operator or module {name!r}: `tersor inspect` lists its operators; behind a "
                    "layer with a BatchNorm, name the BatchNorm"
                )
            taps.add_module(leaf, nn.Identity())
            self._graphs = self._graphs.edited(lambda graph: _tapped(graph, name, f"{TAPS}.{leaf}"))
        return taps.get_submodule(leaf)

    def taps(self) -> dict[str, tuple[int, ...]]:
        """The titles of the operators that ``tap`` takes, in order, with the shapes of their values for the example."""
        return dict(self._graphs.shapes)

    def named_quantizers(self) -> Iterator[tuple[str, Any]]:
        """Every quantizer with its dotted name."""
        for name, module in self.named_modules():
            if name.startswith(f"{QUANTIZERS}.") and hasattr(module, "spec"):
                yield name, module

    def latent_weights(self) -> Iterator[LatentWeight]:
        """Every weight that is trained and quantized, for each of its quantizers, with what multiplies it before."""
        parameters, seen = dict(self.named_parameters()), set[tuple[str, str]]()
        for write in self._graphs.writes:
            if write.quantizer is None or write.source is None:
                continue
            name = write.source.weight if isinstance(write.source, Folded) else write.source
            # Not among them are weights that are computed from others, as by weight_norm.
            parameter, quantizer = parameters.get(name), self.get_submodule(write.quantizer)
            # A shared weight has a quantizer for each of its uses.
            if parameter is not None and parameter.requires_grad and (name, write.quantizer) not in seen:
                seen.add((name, write.quantizer))
                yield LatentWeight(name, quantizer, parameter, self._factor(write, quantizer, parameter))

    def _factor(self, write: Write, quantizer: Any, weight: Tensor) -> Tensor | None:
        """As in ``folding``: the signs of γ for an asymmetric grid per output, γ/σ for a grid of the folded weight."""
        if not isinstance(write.source, Folded) or (write.per_output and quantizer.spec.symmetric):
            return None
        record, one = write.source, torch.ones_like(weight)
        gamma, variance = self._tensor(record.gamma), self._tensor(record.variance)
        if write.per_output:
            return oriented(one, gamma)
        assert variance is not None
        return folded_weight(one, gamma, variance, record.eps, record.groups).detach()

    def _generate(self) -> None:
        """Generate the code now: a compiler cannot trace its generation."""
        for graph in ("train", "frozen", "evaluate"):
            self._graphs.function(graph, self)

    @property
    def _kind(self) -> str:
        """The graph that is run now."""
        return "evaluate" if not self.training else "frozen" if self._frozen else "train"

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        network = self._graphs.network
        inputs = args if network.signature is None else network.signature.flat(args, kwargs)
        if not network.dynamic_batch and (found := batch_size(inputs)) != (fixed := batch_size(network.example)):
            raise TaskError(
                f"the network was captured with a fixed batch of {fixed}, and is called with {found} samples: give "
                f"batches of {fixed}, or a Task.example of another size"
            )
        for number, (given, example) in enumerate(zip(inputs, network.example, strict=True)):
            free = network.varying(number)
            for dim, (size, wanted) in enumerate(zip(given.shape, example.shape, strict=False)):
                if size != wanted and dim not in free and not (dim == 0 and not network.dynamic_batch):
                    raise TaskError(
                        f"{network.input_names[number]} has size {size} in dimension {dim}, the network takes "
                        f'{wanted}: free it with Task(dynamic={{"{network.input_names[number]}": {{{dim}: "size"}}}})'
                    )
        return inputs

    def _result(self, out: Any) -> Any:
        signature = self._graphs.network.signature
        return signature.build(out) if signature is not None else out[0] if len(out) == 1 else tuple(out)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._frozen = bool(self.batchnorm_frozen)

    def _tensor(self, name: str | None) -> Tensor | None:
        """The parameter or buffer of that dotted name; None for None."""
        path, _, leaf = (name or "").rpartition(".")
        return None if name is None else getattr(self.get_submodule(path), leaf)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        return owner, leaf


def check_names(names: Iterable[str]) -> None:
    """Refuse a model with a submodule or a parameter whose name a trainable network needs.

    Raises:
        TaskError: naming it.
    """
    for first in dict.fromkeys(name.split(".")[0] for name in names):
        if first in (QUANTIZERS, TAPS, DEVICE) or hasattr(Trainable, first):
            raise TaskError(f"the model's {first} has a name that a trainable network needs itself: rename it")


def _at(node: fx.Node, name: str) -> bool:
    path = str(node.meta.get("path", ""))
    return node.op == "call_function" and (node.meta.get("title") == name or f"{path}.".startswith(f"{name}."))


def _tapped(graph: fx.Graph, name: str, key: str) -> None:
    node = [n for n in graph.nodes if not n.meta.get("quantizer") and _at(n, name)][-1]
    with graph.inserting_after(node):
        tap = graph.call_module(key, (node,))
    node.replace_all_uses_with(tap, delete_user_cb=lambda user: user is not tap)
