"""Convert the vocabulary of tokenizer.json to GGUF metadata."""

import re
from pathlib import Path
from typing import Any

from tersor.checkpoints.foreign.files import foreign, inside, read_object
from tersor.errors import CheckpointError

# GGUF's names for the special tokens of tokenizer_config.json.
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


def vocabulary(folder: Path | None, size: int) -> dict[str, Any]:
    """The keys ``tokenizer.ggml.…`` for an embedding of ``size`` rows.

    A BPE with byte fallback, as in Llama 1 and 2, is SentencePiece to llama.cpp, which first merges the pair whose
    result has the highest score: minus the rank of its first merge. Ids without a token are marked unused.
    Without a ``folder``, the file has no vocabulary.

    Raises:
        CheckpointError: the folder has no tokenizer.json, one of another kind, or one with more than ``size`` tokens.
    """
    if folder is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    with foreign(CheckpointError, f"the tokenizer of {folder} cannot be converted", "pass no tokenizer"):
        return _vocabulary(folder, size)


def _vocabulary(folder: Path, size: int) -> dict[str, Any]:
    tokenizer, settings = _json(folder, "tokenizer.json"), {}
    if (folder / "tokenizer_config.json").is_file():
        settings = _json(folder, "tokenizer_config.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is not a BPE with byte fallback (type {model.get('type')}), the only kind "
            "that GGUF export supports: pass no tokenizer and tokenize elsewhere, or convert the folder with llama.cpp"
        )
    tokens = _tokens(tokenizer, folder, size)
    ids = {token: i for i, token in enumerate(tokens)}
    settings.setdefault("unk_token", model.get("unk_token"))
    named = {key: _text(settings.get(f"{name}_token")) for key, name in _SPECIAL.items()}
    special = {key: ids[text] for key, text in named.items() if text in ids}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": _scores(tokens, model["merges"]),
        "tokenizer.ggml.token_type": _types(tokens, tokenizer, special.get("unknown")),
        **{f"tokenizer.ggml.{key}_token_id": i for key, i in special.items()},
        "tokenizer.ggml.add_bos_token": settings.get("add_bos_token", _begins_with_special(tokenizer)),
        "tokenizer.ggml.add_space_prefix": _prepends(tokenizer),
    }


def _tokens(tokenizer: dict, folder: Path, size: int) -> list[str]:
    """The token of each id; ids without a token get a placeholder that no text contains."""
    by_id = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in tokenizer.get("added_tokens", [])}
    if max(by_id) >= size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has the id {max(by_id)}, but the embedding has {size} rows: "
            "they belong to different models, or resize_token_embeddings was not called"
        )
    return [by_id.get(i, f"[PAD{i}]") for i in range(size)]


def _scores(tokens: list[str], merges: list) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _types(tokens: list[str], tokenizer: dict, unknown: int | None) -> list[int]:
    known = set(tokenizer["model"]["vocab"].values())
    types = [_NORMAL if i in known else _UNUSED for i in range(len(tokens))]
    for i, token in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i] = _BYTE
    for added in tokenizer.get("added_tokens", []):
        types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    if unknown is not None:
        types[unknown] = _UNKNOWN
    return types


def _begins_with_special(tokenizer: dict) -> bool:
    """Whether the tokenizer prepends a special token to every text."""
    return any(
        "SpecialToken" in part
        for step in _steps(tokenizer.get("post_processor"), "processors")
        for part in step.get("single", [])[:1]
    )


def _prepends(tokenizer: dict) -> bool:
    """Whether the tokenizer prepends a space to every text."""
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    splits = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step["type"] == "Prepend" for step in normalizers) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in splits
    )


def _steps(step: dict | None, key: str) -> list[dict]:
    """The steps of a sequence, or the single step."""
    return [] if step is None else step.get(key, [step])


def _text(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = inside(folder, name, CheckpointError)
    return read_object(path, CheckpointError, "pass the folder that holds the tokenizer")
