"""A LoRA adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors, read as foreign files."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, StrictBool
from safetensors.torch import load_file
from torch import Tensor

from tersor.checkpoints.foreign.files import checked, foreign, inside, read_object
from tersor.errors import CheckpointError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.weight")
# Starts that leave the base model's weights as they are.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_REMEDY = "merge it with PEFT into the float model, and compress that"


class _Config(BaseModel):
    """The entries that are read."""

    peft_type: str = ""
    lora_alpha: float = Field(default=8, allow_inf_nan=False)
    use_rslora: StrictBool = False
    use_dora: Any = False
    use_qalora: Any = False
    bias: str = "none"
    modules_to_save: Any = None
    alpha_pattern: dict[str, Any] | None = None
    init_lora_weights: Any = True


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter adds to the weights of a model.

    Args:
        factors: by the name of the module, B [out, rank] and A [rank, in], both float32.
        alpha: divided by the rank (with ``rooted``, by its root), the factor of B·A.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    alpha: float
    rooted: bool = False

    def shape(self, module: str) -> tuple[int, int]:
        """[out, in] of a module's weight."""
        b, a = self.factors[module]
        return len(b), a.shape[1]

    def delta(self, module: str) -> Tensor:
        """The change of a module's weight, [out, in]."""
        b, a = self.factors[module]
        return (b @ a) * (self.alpha / (math.sqrt(len(a)) if self.rooted else len(a)))


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter (arXiv 2106.09685).

    Raises:
        CheckpointError: it is no LoRA adapter, is damaged, or changes more than the products of linear layers; the
            message names what.
    """
    content = read_object(inside(folder, _CONFIG, CheckpointError), CheckpointError, "give a folder that PEFT saved")
    config = checked(_Config, content, f"{folder / _CONFIG}", CheckpointError, "save the adapter again")
    _check(folder, config)
    path = inside(folder, _WEIGHTS, CheckpointError)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: save the adapter again with save_pretrained, as safetensors")
    with foreign(CheckpointError, f"{path} cannot be read", "save the adapter again"):
        tensors = load_file(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.ndim != 2:
            raise CheckpointError(f"{path}: {key} is not a factor of a linear layer, which alone is merged; {_REMEDY}")
        parts.setdefault(match[1], {})[match[2]] = tensor.float()
    factors = {}
    for module, pair in parts.items():
        if set(pair) != {"A", "B"} or pair["B"].shape[1] != pair["A"].shape[0] or not len(pair["A"]):
            raise CheckpointError(f"{path}: the factors of {module} do not fit each other: save the adapter again")
        if not (pair["A"].isfinite().all() and pair["B"].isfinite().all()):
            raise CheckpointError(f"{path}: the factors of {module} hold NaN or infinity: train the adapter again")
        factors[module] = pair["B"], pair["A"]
    if not factors:
        raise CheckpointError(f"{path} holds no factors: there is nothing to merge")
    return Adapter(factors, config.lora_alpha, config.use_rslora)


def _check(folder: Path, config: _Config) -> None:
    """Refuse an adapter that changes more than B·A says."""
    if config.peft_type != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of the type {config.peft_type!r:.40}, not LORA; {_REMEDY}")
    more = {
        "use_dora": config.use_dora,
        "use_qalora": config.use_qalora,
        "bias": config.bias != "none",
        "modules_to_save": config.modules_to_save,
        "alpha_pattern": config.alpha_pattern,
        "init_lora_weights": config.init_lora_weights not in _PLAIN_STARTS,
    }
    if wrong := next((name for name, value in more.items() if value), None):
        value = getattr(config, wrong)
        raise CheckpointError(f"{folder / _CONFIG}: `{wrong}: {value!r:.60}` is not merged into codes; {_REMEDY}")
