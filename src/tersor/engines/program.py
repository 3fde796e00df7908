"""Convert the Network back to an ExportedProgram, which the engines' converters read."""

from typing import Any

import torch

from tersor.network.network import Network
from tersor.process import quiet


def exported(network: Network) -> Any:
    """``torch.export`` of the network's graph, with a dynamic batch if it was captured with one."""
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if network.dynamic_batch and x.ndim else None for x in network.example)
    with quiet(), torch.no_grad():
        return torch.export.export(network.module, network.example, dynamic_shapes=shapes, strict=False)
