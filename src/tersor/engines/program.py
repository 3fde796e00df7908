"""Convert the Network back to an ExportedProgram, which the engines' converters read."""

from typing import Any

import torch

from tersor.network.export import dynamic_shapes
from tersor.network.network import Network
from tersor.process import quiet


def exported(network: Network) -> Any:
    """``torch.export`` of the network's graph, with the dimensions dynamic that were captured so."""
    shapes = dynamic_shapes(network)
    with quiet(), torch.no_grad():
        return torch.export.export(network.module, network.example, dynamic_shapes=shapes, strict=False)
