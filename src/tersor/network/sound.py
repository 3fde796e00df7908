"""What is wrong with a model itself: TorchScript, and parameters that are not finite."""

import torch
from torch import Tensor, fx, nn

from tersor.errors import CaptureError
from tersor.network.network import Network, op_name


def refuse_torchscript(model: nn.Module) -> None:
    """Raise CaptureError if the model was made by torch.jit."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"the model is a TorchScript module ({type(model).__name__}, made by torch.jit.trace, torch.jit.script or "
            "torch.jit.load), which torch.export cannot capture: pass the nn.Module that it was made from"
        )


def check_finite(network: Network, model: nn.Module) -> Network:
    """The network, if its tensors are finite and no variance of a BatchNorm is negative.

    A constant of the model may hold -inf, as attention masks do; parameters and statistics may not.

    Raises:
        CaptureError: naming the tensor, as the model's state dict does, and the values.

    >>> from tersor.network.capture import capture
    >>> layer = nn.Linear(2, 1).eval()
    >>> _ = layer.weight.data.fill_(float("nan"))
    >>> capture(layer, (torch.zeros(1, 2),))
    Traceback (most recent call last):
    tersor.errors.CaptureError: the model's parameter weight holds 2 NaN and 0 infinite of 2 values: the model is
    damaged, not the data; load a checkpoint with finite values, or train again
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    normal = {n for node in network.operators() if op_name(node) == "batch_norm" for n in node.all_input_nodes}
    for node in network.graph.nodes:
        if node.op != "get_attr":
            continue
        name, strict = str(node.target), node in normal or str(node.target) in parameters
        kind = "parameter" if name in parameters else "BatchNorm statistic" if node in normal else "buffer"
        _check_tensor(f"the model's {kind} {name}", network.tensor(node), strict)
    for node in network.operators():
        if op_name(node) == "batch_norm":
            _check_variance(network, node)
    return network


def _check_tensor(what: str, value: Tensor, strict: bool) -> None:
    if not value.is_floating_point():
        return
    nan, infinite = int(value.isnan().sum()), int((value.isinf() if strict else value.isposinf()).sum())
    if nan or infinite:
        raise CaptureError(
            f"{what} holds {nan} NaN and {infinite} infinite of {value.numel()} values: the model is damaged, not the "
            "data; load a checkpoint with finite values, or train again"
        )


def _check_variance(network: Network, node: fx.Node) -> None:
    variance, epsilon = node.args[4], float(node.args[7])  # type: ignore[arg-type]
    if not isinstance(variance, fx.Node) or variance.op != "get_attr":
        return
    least = float(network.tensor(variance).min())
    if least + epsilon <= 0:
        raise CaptureError(
            f"the model's BatchNorm statistic {variance.target} holds a variance of {least:.4g}, whose square root is "
            "no number: the model is damaged, not the data; load a checkpoint with variances above 0, or train again"
        )
