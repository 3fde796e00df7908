"""Explain a failed torch.export, with the offending line of the model."""

import re
from pathlib import Path

import torch
from torch import fx, nn

from tersor.errors import CaptureError


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
    """A refusal that names the part of the model in TorchScript, or the offending line of user code."""
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
