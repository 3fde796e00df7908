"""The class and configuration of transformers that a folder's config.json names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersor.errors import CaptureError
from tersor.files import temporary_folder
from tersor.packages import needing

# sdpa where the architecture has it, otherwise the attention written out.
_ATTENTIONS = ("sdpa", "eager")


def import_transformers() -> Any:
    """Import transformers.

    Raises:
        EngineError: it is not installed.
    """
    with needing("A folder in the Hugging Face layout", "transformers"):
        import transformers
    return transformers


def model_class(config: Mapping[str, Any]) -> Any:
    """The class of transformers that ``config`` names, or None if transformers has none of its names."""
    transformers = import_transformers()
    names = config.get("architectures") or ()
    return next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)


def model_config(config: Mapping[str, Any]) -> Any:
    """The configuration object for the content of a config.json, as transformers reads it."""
    with temporary_folder() as folder:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf8")
        return import_transformers().AutoConfig.from_pretrained(folder, local_files_only=True)


def build_model(config: Mapping[str, Any], path: Path) -> Any:
    """An instance of the class that ``config``, the config.json of ``path``, names.

    Raises:
        CaptureError: transformers does not know the architecture, or the values describe no model of it.
    """
    transformers = import_transformers()
    kind = config.get("model_type")
    known = kind in transformers.CONFIG_MAPPING
    if "auto_map" in config and not known:
        raise CaptureError(
            f"{path} contains Python code for the architecture {kind!r}, which is not executed: pass "
            "`build=`, a function that returns the model"
        )
    if not known:
        raise CaptureError(
            f"transformers {transformers.__version__} does not know the architecture {kind!r} (`model_type` in the "
            f"config.json of {path}): install a newer one, or pass `build=`, a function that returns the model"
        )
    failures: list[Exception] = []
    for attention in _ATTENTIONS:
        try:
            loaded = model_config(config)
            # Experts as a loop over plain products, so that the input of each can be observed.
            loaded._experts_implementation = "eager"
            # RWKV would divide weights in place before its first call, and its hidden states between blocks to match.
            if getattr(loaded, "rescale_every", 0):
                loaded.rescale_every = 0
            loaded._attn_implementation = attention
            named = model_class(config)
            return transformers.AutoModel.from_config(loaded) if named is None else named._from_config(loaded)
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, ImportError) as error:
            failures.append(error)
    raise CaptureError(f"the config.json of {path} does not describe a model: {failures[-1]}") from failures[-1]
