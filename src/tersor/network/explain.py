"""Problems of a model: TorchScript, non-finite values, or a line that torch.export cannot capture."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.errors import CaptureError
from tersor.network.network import Network, op_name
from tersor.numerics import all_finite


def where(node: fx.Node) -> str:
    """The line of the model's code that created a node."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    return " ".join(line.strip() for line in trace[-2:]) or node.name


def summary(error: Exception) -> str:
    """The first informative words of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = re.sub(r"For more information, run with TORCH_LOGS=\S+", "", lines[0]).strip()
    return (first if first == lines[0] else " ".join([first, *lines[1:2]]))[:240]


def location(error: Exception) -> str:
    """The offending line of user code, from the traceback or torch.export's message; empty if it is unknown."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)', str(error))
    user_lines = [f'{f}:{n} in {fn}: "{code.strip()}"' for f, n, fn, code in lines if "/torch/" not in f]
    frame, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/torch/" not in code.co_filename and Path(code.co_filename).parent != Path(__file__).parent:
            frame = f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return user_lines[-1] if user_lines else frame or ""


def explained(error: Exception, model: nn.Module) -> CaptureError:
    """An error that names the part of the model in TorchScript, or the offending line of user code."""
    scripted = [name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        return CaptureError(
            f"torch.export cannot capture this model, whose part {scripted[0]} is a TorchScript module (made by "
            f"torch.jit): put the nn.Module that it was made from in its place. Reason: {type(error).__name__}: "
            f"{summary(error)}"
        )
    line = location(error) or "(torch.export gives no line)"
    return CaptureError(
        f"torch.export cannot capture this model. Offending line: {line}. Reason: {type(error).__name__}: "
        f"{summary(error)}. What to do: a Python `if`, loop or `.item()` on tensor values must leave forward() or "
        "become torch.where; an operator written in C++ or with numpy must be replaced; or compress a part without it"
    )


def refuse_torchscript(model: Any) -> None:
    """Raise CaptureError if the model is not a module, or was created by torch.jit."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"the model is {model!r:.60}, a {type(model).__name__}: give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"the model is a TorchScript module ({type(model).__name__}, made by torch.jit.trace, torch.jit.script or "
            "torch.jit.load), which holds no layers of its own any more: pass the nn.Module that it was made from"
        )


def check_finite(network: Network, model: nn.Module) -> Network:
    """The network, if its tensors are finite and no variance of a BatchNorm is negative.

    A constant of the model may contain -inf, as attention masks do; parameters and statistics may not.

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
    if not value.is_floating_point() or all_finite(value):
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
