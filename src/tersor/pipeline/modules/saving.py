"""Why ``save_pretrained`` does not save a quantized model."""

from functools import partial
from typing import Any, NoReturn

from torch import nn

from tersor.errors import SavedFolderError


def refuse_saving(model: nn.Module) -> nn.Module:
    """The model, in which every ``save_pretrained`` raises: its ``from_pretrained`` would initialize new weights."""
    for module in model.modules():
        if callable(getattr(module, "save_pretrained", None)):
            module.save_pretrained = partial(_refuse, type(module).__name__)  # type: ignore[assignment]
    return model


def _refuse(kind: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise SavedFolderError(
        f"{kind}.from_pretrained cannot read the codes of a quantized model, and would make weights of its own: save "
        "state_dict(), and read it into tersor.quantize_dynamic(float_model), with the same recipe, by "
        "load_state_dict; or write a folder that transformers reads by tersor.compress_folder"
    )
