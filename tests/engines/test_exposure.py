"""Values between an engine's operators: from compiles, edges and samples that do not change the engine's network."""

from dataclasses import dataclass

import torch
from parts import draw, task_of
from torch import nn
from toy_engine import Toy, residual

import tersor
from tersor.engines import ENGINES
from tersor.engines.exposure import edges_of, with_edges
from tersor.engines.onestep import check_steps
from tersor.engines.torch.runner import TorchRunner
from tersor.network.network import Network, finish, set_tensor


def test_values_whose_output_changes_the_network_are_cut_and_else_unchecked():
    network, inputs = residual()
    edges = edges_of(network, TorchRunner(network), ENGINES["torch"].policy().transparent)
    shared = next(n for n in edges if len(n.users) > 1)

    @dataclass(frozen=True)
    class Shy(Toy):
        """Computes other numbers when a value that two operators read is also an output."""

        by_cut: bool = True

        def compile(self, network, *, threads=None, precision="f32"):
            edited = network.edit()
            output = next(n for n in edited.graph.nodes if n.op == "output")
            seen = shared.name in {n.name for n in output.args[0]}
            fed = any(n.op == "placeholder" and n.name.startswith(shared.name) for n in edited.graph.nodes)
            if seen and not (fed and self.by_cut):
                set_tensor(edited, "a.weight_scale", edited.tensor("a.weight_scale") * 1.5)
            return TorchRunner(finish(edited), threads, precision)

    cut = check_steps(Shy(), network, Shy().compile(network), inputs)
    assert {s.verdict for s in cut} == {"planned"}
    never = check_steps(Shy(by_cut=False), network, Shy(by_cut=False).compile(network), inputs)
    missing = [s for s in never if s.verdict == "unchecked"]
    assert [s.node for s in missing] == [shared.name]
    assert "changes the engine's network" in str(missing[0].note)
    assert {s.verdict for s in never} == {"planned", "unchecked"}


class Residuals(nn.Module):
    """Residual sums in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(8))

    def forward(self, x):
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = (second(first(x).relu()) + x).relu()
        return x.mean((2, 3))


def _fed(network: Network) -> set[str]:
    return {n.removesuffix("_fed") for n in network.input_names if n.endswith("_fed")}


def test_the_edges_that_change_the_network_are_found_among_many_sums():
    torch.manual_seed(0)
    network = tersor.compress(
        task_of(Residuals().eval(), (4, 8, 8)), engine="torch", report=False, progress=False
    ).network
    edges = edges_of(network, TorchRunner(network), ENGINES["torch"].policy().transparent)
    sums = [n.name for n in edges if len(n.users) > 1]
    assert len(sums) == 4
    shy = {sums[1], sums[2]}
    compiles = []

    @dataclass(frozen=True)
    class Shy(Toy):
        """Computes other numbers for what is fed to two of the sums, and for the sums that are outputs only."""

        def compile(self, network, *, threads=None, precision="f32"):
            compiles.append(network)
            edited = network.edit()
            seen = {n.name for n in next(n for n in edited.graph.nodes if n.op == "output").args[0]}
            for name in ((seen & set(sums)) - _fed(network)) | (_fed(network) & shy):
                scale = edited.node(name).args[1]
                set_tensor(edited, scale.target, edited.tensor(scale) * 1.5)
            return TorchRunner(finish(edited), threads, precision)

    found = check_steps(Shy(), network, Shy().compile(network), draw(((4, 8, 8),), 6, 9))
    missing = {s.node for s in found if s.verdict == "unchecked" and s.largest == 0.0}
    assert missing == shy
    assert {s.verdict for s in found} == {"planned", "unchecked"}
    assert len(compiles) <= 13


def test_samples_whose_outputs_change_are_left_out():
    network, inputs = residual()
    inputs = [inputs[0].clone()]
    inputs[0][:, 0, 0, 0] = torch.tensor([-9.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    edges = edges_of(network, TorchRunner(network), ENGINES["torch"].policy().transparent)

    class Tied(TorchRunner):
        """Computes other numbers for all samples but the first."""

        def __call__(self, *values, **named):
            outputs = super().__call__(*values, **named)
            return (outputs[0] + 1e-6 * (values[0][:, 0, 0, 0] > 0)[:, None], *outputs[1:])

    @dataclass(frozen=True)
    class Flipping(Toy):
        def compile(self, network, *, threads=None, precision="f32"):
            return (Tied if len(network.output_names) > 1 else TorchRunner)(network, threads, precision)

    found = check_steps(Flipping(tolerance=0.0), network, Flipping().compile(network), inputs)
    assert {s.verdict for s in found} == {"planned"}
    assert len(found) == len(edges) + 1


def test_a_cut_network_gives_the_same_when_it_is_fed_its_own_values():
    network, inputs = residual()
    edges = edges_of(network, TorchRunner(network), ENGINES["torch"].policy().transparent)
    values = TorchRunner(with_edges(network, edges, {}))(*inputs)[1:]
    cut = with_edges(network, edges, dict(zip(edges, values, strict=True)))
    again = TorchRunner(cut)(*inputs, *values)
    assert torch.equal(again[0], network(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(again[1:], values, strict=True))
