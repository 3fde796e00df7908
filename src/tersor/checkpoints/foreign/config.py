"""Limits of a foreign configuration: it may not name code, files or repositories, nor exceed its weights in size."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import module as hooks

from tersor.errors import CheckpointError

# Keys by which transformers would import code, load kernels, or read other files and repositories.
_ACTING = re.compile(
    r"auto_map|custom_pipelines|custom_generate|trust_remote_code|local_files_only|code_revision|token|use_auth_token|"
    r"_?(attn|experts)_implementation\w*|kernel_config|use_kernels|init_inputs|"
    r"_?name_or_path|backbone|use_pretrained_backbone|use_timm_backbone|backbone_kwargs|proxies|subfolder|gguf_file|"
    r".*_(files?|path|dir|folder|repo|revision|url)|revision|"
    r"assistant_model|peft|_from_auto|_commit_hash|bad_words_file"
)
# Numbers that are not sizes.
_NO_SIZES = re.compile(r".*(theta|base|factor|_ids?|index|seed|eps|max_length|min_length|params?|parameters)\d*")
MAX_NUMBER = 1 << 24
MAX_GENERATED = {"num_beams": 1000, "num_beam_groups": 1000, "num_return_sequences": 1000, "top_k": 1 << 24}


class Held(NamedTuple):
    """The size of a folder's weights: the number of tensors, and their bytes."""

    tensors: int
    nbytes: int


def inert(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that would have effects, at any depth.

    >>> inert({"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}})
    {'model_type': 'llama'}
    """
    return {key: _inert(value) for key, value in config.items() if not _ACTING.fullmatch(key)}


def _inert(value: Any) -> Any:
    if isinstance(value, dict):
        return inert(value)
    return [_inert(v) for v in value] if isinstance(value, list) else value


def check_sizes(config: Mapping[str, Any], held: Held, where: str) -> None:
    """Reject sizes that the weights cannot have, before they are used.

    At most as many layers as tensors; other sizes at most the number of bits of all weights, or MAX_NUMBER.

    Raises:
        CheckpointError: naming the key and the value.

    >>> check_sizes({"vocab_size": 10**12}, Held(10, 1000), "config.json")
    Traceback (most recent call last):
    tersor.errors.CheckpointError: config.json: vocab_size is 1000000000000, and the 10 tensors beside it, ...
    """
    for key, value in _numbers(dict(config)):
        if _NO_SIZES.fullmatch(key) or value != value:
            continue
        layers = re.fullmatch(r"(.*_)?(n|num)?_?(\w+_)?(layers?|blocks?|depths?)", key)
        limit = max(held.tensors, 64) if layers else max(8 * held.nbytes, MAX_NUMBER)
        if abs(value) > limit and (isinstance(value, int) or layers):
            raise CheckpointError(
                f"{where}: {key} is {value}, and the {held.tensors} tensors beside it, of {held.nbytes} bytes, belong "
                "to no such model: download the folder again"
            )


def check_generation(settings: Mapping[str, Any], where: str) -> None:
    """Reject generation settings that would need excessive memory; raises CheckpointError."""
    for key, limit in MAX_GENERATED.items():
        value = settings.get(key)
        if isinstance(value, int | float) and abs(value) > limit:
            raise CheckpointError(f"{where}: {key} is {value}, more than {limit}: change the file")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number, with the nearest key above it."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


@contextmanager
def bounded(held: Held, where: str) -> Iterator[None]:
    """Limit the modules that this thread constructs inside to the number and size that a folder's weights can fill.

    Raises:
        CheckpointError: on the first module or parameter beyond the limit.
    """
    builder, count = threading.get_ident(), 0

    def counted(module: nn.Module, name: str, part: Any) -> None:
        nonlocal count
        if threading.get_ident() != builder or part is None:
            return
        count += 1
        size = part.numel() if hasattr(part, "numel") else 0
        if count > 64 * held.tensors + 10_000 or size > max(8 * held.nbytes, MAX_NUMBER):
            raise CheckpointError(
                f"{where} describes a model with more or larger parts than the {held.tensors} tensors beside it, of "
                f"{held.nbytes} bytes, can fill ({name}): download the folder again"
            )

    with ExitStack() as stack:
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
            hooks.register_module_module_registration_hook,
        ):
            stack.callback(register(counted).remove)  # type: ignore[arg-type]
        yield
