"""ResNet-20 trained with the quantizers of Brevitas or torchao: a process of its own, without tersor.

The pictures, their order and crops, the first weights, the loss, the optimizer and its rates are those of our own rows.
It runs in the environment of TERSOR_PEERS_PYTHON (torch, brevitas, torchao, numpy, pillow, safetensors), resumes by
epoch from its folder, and writes ``result.json`` there.
"""

import argparse
import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from networks import ResNetCifar, load
from pictures import cifar10, shared
from torch import Tensor, nn
from training_pictures import Epoch, ready, seed_epoch

EXAMPLE = 64  # pictures in a batch of calibration
CALIBRATED = 512


@dataclass
class Peer:
    """A network with a library's quantizers.

    Args:
        network: what is trained.
        mode: sets it to training, or to evaluation.
        deployed: what is judged in the end.
    """

    network: nn.Module
    mode: Callable[[nn.Module, bool], object]
    deployed: Callable[[nn.Module], Callable[[Tensor], Tensor]]


def float_network() -> nn.Module:
    """ResNet-20 with its FP32 weights."""
    return load(ResNetCifar(n=3), shared() / "data/cifar10-nets/resnet20.safetensors")


def calibration() -> Iterator[Tensor]:
    """The 512 training pictures that calibrate ours."""
    for pixels in cifar10("train0")[0][:CALIBRATED].split(EXAMPLE):
        yield ready(pixels)


# ------------------------------------------------ Brevitas
def brevitas(bits: int) -> Peer:
    """Inputs and weights of every layer by learned scales, which start at the smallest squared error; at 8 bits by the
    library's defaults. The ends have 8 bits."""
    import brevitas.nn as qnn
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.quant import scaled_int

    class Weights(scaled_int.Int8WeightPerChannelFloatMSE):
        narrow_range = bits > 2  # at 2 bits all four codes
        scaling_min_val = 1e-8

    class Inputs(scaled_int.Uint8ActPerTensorFloatMSE):
        scaling_min_val = 1e-8

    def options(name: str) -> dict[str, Any]:
        end = name in ("conv1", "linear")
        eight = bits == 8 or end
        inputs = Inputs if not eight else scaled_int.Uint8ActPerTensorFloat
        return {
            "weight_quant": scaled_int.Int8WeightPerChannelFloat if eight else Weights,
            "weight_bit_width": 8 if eight else bits,
            "input_quant": scaled_int.Int8ActPerTensorFloat if name == "conv1" else inputs,
            "input_bit_width": 8 if eight else bits,
        }

    network = float_network()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d):
            shape = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            made: nn.Module = qnn.QuantConv2d(*shape, bias=False, **options(name))
        elif isinstance(layer, nn.Linear):
            made = qnn.QuantLinear(layer.in_features, layer.out_features, bias=True, **options(name))
            made.bias.data.copy_(layer.bias)
        else:
            continue
        made.weight.data.copy_(layer.weight)
        made.weight_quant.init_tensor_quant()  # scales from these weights
        path, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(path), leaf, made)
    with torch.no_grad(), calibration_mode(network):
        for x in calibration():
            network(x)
    return Peer(network, lambda model, on: model.train(on), lambda model: model.eval())


# ------------------------------------------------ torchao
def torchao(bits: int) -> Peer:
    """PT2E for training: at 8 bits by its quantizer for x86, below by the symmetric one that takes ranges of codes."""
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = torch.cat([next(calibration())])
    batch = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(float_network().train(), (example,), dynamic_shapes=batch).module()
    if bits == 8:
        quantizer: Any = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    else:
        quantizer = _few_bits(bits)
    network = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_eval(network)
    with torch.no_grad():
        for x in calibration():
            network(x)
    mode = {True: move_exported_model_to_train, False: move_exported_model_to_eval}
    return Peer(
        network,
        lambda model, on: mode[on](model),
        lambda model: convert_pt2e(copy.deepcopy(move_exported_model_to_eval(model))),
    )


def _few_bits(bits: int) -> Any:
    """The ends with 8 bits."""
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    few = get_symmetric_quantization_config(True, True, False, low, high, low, high)
    eight = get_symmetric_quantization_config(True, True)
    quantizer = XNNPACKQuantizer().set_global(few)
    return quantizer.set_module_name("conv1", eight).set_module_name("linear", eight)


PEERS: dict[str, Callable[[int], Peer]] = {"brevitas": brevitas, "torchao": torchao}


# ------------------------------------------------ the loop, as ours
def train(asked: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on training, and judge the last epoch."""
    peer, teacher = PEERS[asked.library](asked.bits), float_network().to(memory_format=torch.channels_last)
    groups = _groups(peer.network, asked.rate, asked.weight_decay)
    if asked.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=asked.rate)
    else:
        optimizer = torch.optim.SGD(groups, lr=asked.rate, momentum=0.9, nesterov=True)
    data, saved = Epoch(asked.pictures), asked.folder / "state.pt"
    epochs: list[dict[str, float]] = []
    if saved.is_file():
        state = torch.load(saved, weights_only=True)
        peer.network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        epochs = state["epochs"]
    factor = _cosine(asked.epochs * len(data), asked.warmup)
    for number in range(len(epochs), asked.epochs):
        start, total = time.perf_counter(), 0.0
        seed_epoch(asked.seed, number)
        peer.mode(peer.network, True)
        for k, (x, _) in enumerate(data):
            for group in optimizer.param_groups:
                group["lr"] = asked.rate * factor(number * len(data) + k)
            loss = _distilled(peer.network(x), teacher, x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        epochs.append({"loss": total / len(data), "seconds": time.perf_counter() - start})
        state = {"network": peer.network.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}
        torch.save(state, saved.with_suffix(".new"))
        saved.with_suffix(".new").replace(saved)
    peer.mode(peer.network, False)
    hits = _hits(peer.deployed(peer.network), asked.judged)
    versions = {name: version(name) for name in ("torch", asked.library)}
    return {"training": epochs, "hits": hits.int().tolist(), "versions": versions}


def _distilled(scores: Tensor, teacher: nn.Module, x: Tensor, temperature: float = 4.0) -> Tensor:
    with torch.no_grad():
        taught = F.log_softmax(teacher(x) / temperature, 1)
    ours = F.log_softmax(scores / temperature, 1)
    return temperature**2 * F.kl_div(ours, taught, log_target=True, reduction="batchmean")


def _groups(network: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """Decay for weights alone, not for scales, biases and norms."""
    weights, others = [], []
    for name, p in network.named_parameters():
        (weights if p.ndim > 1 and name.endswith("weight") else others).append(p)
    return [{"params": weights, "lr": rate, "weight_decay": decay}, {"params": others, "lr": rate, "weight_decay": 0.0}]


def _cosine(steps: int, warmup: float) -> Callable[[int], float]:
    rise = math.ceil(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def _hits(predict: Callable[[Tensor], Tensor], count: int) -> Tensor:
    pixels, labels = cifar10("test")
    with torch.no_grad():
        found = [predict(ready(x)).argmax(1) for x in pixels[:count].split(100)]
    return (torch.cat(found) == labels[:count]).float()


def main() -> None:
    """One library, one number of bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=PEERS)
    for name in ("bits", "epochs", "seed", "pictures", "judged", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("rate", "weight-decay", "warmup"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked.threads)
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / "result.json").write_text(json.dumps(train(asked)), encoding="utf8")


if __name__ == "__main__":
    main()
