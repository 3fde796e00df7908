"""The only place where transformers reads a folder: never its code, only its own files, nothing from the network.

Configurations are made inert first: keys that name code, kernels, other files or repositories are removed, and sizes
beyond those of the weights are rejected before a model is built.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tersor.checkpoints.foreign.config import Held, bounded, check_generation, check_sizes, inert
from tersor.checkpoints.foreign.files import foreign, inside, read_object
from tersor.errors import CaptureError, CheckpointError
from tersor.files import temporary_folder
from tersor.packages import needing
from tersor.process import offline

# sdpa if the architecture supports it, otherwise eager attention.
_ATTENTIONS = ("sdpa", "eager")
_SAFE = {"trust_remote_code": False, "local_files_only": True}
# The files of a tokenizer, besides tokenizer_config.json and config.json.
TOKENIZER_FILES = (
    "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "vocab.txt", "vocab.model", "tokenizer.model", "sentencepiece.bpe.model",
    "spiece.model", "spm.model", "source.spm", "target.spm", "bpe.codes", "normalizer.json", "tekken.json",
    "tiktoken.model", "prophetnet.tokenizer", "dict.txt", "entity_vocab.json", "vocab-src.json", "vocab-tgt.json",
)  # fmt: skip


def import_transformers() -> Any:
    """Import transformers.

    Raises:
        EngineError: it is not installed.
    """
    with needing("A folder in the Hugging Face layout", "transformers"):
        import transformers
    return transformers


def model_class(config: Mapping[str, Any]) -> Any:
    """The class of transformers that ``config`` names, or None if transformers has no such model."""
    transformers = import_transformers()
    names = config.get("architectures") or ()
    found = (getattr(transformers, name, None) for name in names if isinstance(name, str) and name.isidentifier())
    return next((c for c in found if isinstance(c, type) and issubclass(c, transformers.PreTrainedModel)), None)


def model_config(config: Mapping[str, Any], path: Path | None = None) -> Any:
    """The configuration object for the content of a config.json, of that folder, as transformers reads it."""
    with temporary_folder() as folder, offline():
        (folder / "config.json").write_text(json.dumps(inert(config)), encoding="utf8")
        loaded = import_transformers().AutoConfig.from_pretrained(folder, **_SAFE)
    # Adapters and cards name it as their base.
    loaded.name_or_path = str(path or "")
    return loaded


def build_model(config: Mapping[str, Any], path: Path, held: Held) -> Any:
    """An instance of the class that ``config``, the config.json of ``path``, names.

    Args:
        held: the size of the weights of ``path``; the model is first built without memory and compared with it.

    Raises:
        CaptureError: transformers does not know the architecture, or the values do not describe a model of it.
        CheckpointError: they describe a model that the weights cannot fill.
    """
    where = f"the config.json of {path}"
    check_sizes(config, held, where)
    transformers = import_transformers()
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
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
    failures: list[BaseException] = []
    for attention in _ATTENTIONS:
        try:
            with foreign(CaptureError, f"{where} does not describe a model"), offline():
                _check_built(config, held, where, attention)
                return _built(model_config(config, path), model_class(config), attention)
        except CaptureError as error:
            failures.append(error)
    raise failures[-1]


def _check_built(config: Mapping[str, Any], held: Held, where: str, attention: str) -> None:
    """Build the model once without memory; failures for other reasons recur when it is built with memory."""
    failures = ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError
    with suppress(*failures), torch.device("meta"), bounded(held, where), torch.random.fork_rng(devices=[]):
        _built(model_config(config), model_class(config), attention)


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the model that ``config`` describes, which is built without memory.

    Raises:
        CaptureError: it describes none.
    """
    with foreign(CaptureError, "the configuration does not describe a model"), offline():
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = _built(model_config(config), model_class(config), "eager")
        return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _built(loaded: Any, named: Any, attention: str) -> Any:
    # Experts as a loop over plain products, so that the input of each can be observed.
    loaded._experts_implementation = "eager"
    # RWKV would divide weights in place before its first call, and its hidden states between blocks accordingly.
    if getattr(loaded, "rescale_every", 0):
        loaded.rescale_every = 0
    loaded._attn_implementation = attention
    if named is not None:
        return named._from_config(loaded)
    return import_transformers().AutoModel.from_config(loaded, trust_remote_code=False)


def open_class(model: Any, config: Mapping[str, Any], **options: Any) -> Any:
    """Like ``from_pretrained`` of a transformers class, for a configuration and tensors in memory."""
    with offline():
        return model.from_pretrained(None, config=model_config(config), **_SAFE, **options)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, read only from TOKENIZER_FILES and its configurations.

    Raises:
        CheckpointError: there is none, or one of its files is damaged.
    """
    with temporary_folder() as safe, offline():
        for name in TOKENIZER_FILES:
            path = inside(folder, name, CheckpointError)
            if path.is_file():
                if path.suffix == ".json":
                    read_object(path, CheckpointError, "download it again")
                (safe / name).symlink_to(path.resolve())
        for name in ("config.json", "tokenizer_config.json"):
            if (path := inside(folder, name, CheckpointError)).is_file():
                content = inert(read_object(path, CheckpointError, "download it again"))
                (safe / name).write_text(json.dumps(content), encoding="utf8")
        remedy = (
            "copy tokenizer.json and tokenizer_config.json there, or pass tokens (a tensor int64 [windows, length]) "
            "instead of text"
        )
        with foreign(CheckpointError, f"{folder} has no readable tokenizer", remedy):
            tokenizer = import_transformers().AutoTokenizer.from_pretrained(safe, **_SAFE)
        tokenizer.name_or_path = str(folder)
        return tokenizer


def generation_config(folder: Path) -> Any:
    """The generation settings of a folder, or None if it has none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = inside(folder, "generation_config.json", CheckpointError)
    if not path.is_file():
        return None
    content = inert(read_object(path, CheckpointError, "download it again"))
    check_generation(content, str(path))
    with foreign(CheckpointError, f"{path} holds no generation settings"), offline():
        return import_transformers().GenerationConfig.from_dict(content)
