"""The vocabulary of a tokenizer.json, as the metadata of a GGUF file."""

import json
import re
from pathlib import Path
from typing import Any

from tersor.errors import CheckpointError

# How GGUF calls a token of tokenizer_config.json.
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


def vocabulary(folder: Path | None, size: int) -> dict[str, Any]:
    """The keys ``tokenizer.ggml.…`` for ``size`` rows of the embedding.

    A BPE with byte fallback, as Llama 1 and 2 have it, is SentencePiece to llama.cpp, which merges what gives the
    chunk with the highest score: that is minus the rank of its first merge. Ids without a chunk are unused.
    Without a ``folder``, the file has no vocabulary, only ids.

    Raises:
        CheckpointError: the folder has no tokenizer.json, one of another kind, or more chunks than ``size``.
    """
    if folder is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    tokenizer, settings = _json(folder / "tokenizer.json"), {}
    if (folder / "tokenizer_config.json").is_file():
        settings = _json(folder / "tokenizer_config.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is no BPE with byte fallback ({model.get('type')}), the kind that is written "
            "to GGUF here: give no tokenizer, and tokenize outside, or convert the folder with llama.cpp"
        )
    chunks = _chunks(tokenizer, folder, size)
    ids = {chunk: i for i, chunk in enumerate(chunks)}
    settings.setdefault("unk_token", model.get("unk_token"))
    named = {key: _text(settings.get(f"{name}_token")) for key, name in _SPECIAL.items()}
    special = {key: ids[text] for key, text in named.items() if text in ids}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": chunks,
        "tokenizer.ggml.scores": _scores(chunks, model["merges"]),
        "tokenizer.ggml.token_type": _types(chunks, tokenizer, special.get("unknown")),
        **{f"tokenizer.ggml.{key}_token_id": i for key, i in special.items()},
        "tokenizer.ggml.add_bos_token": settings.get("add_bos_token", _begins_with_special(tokenizer)),
        "tokenizer.ggml.add_space_prefix": _prepends(tokenizer),
    }


def _chunks(tokenizer: dict, folder: Path, size: int) -> list[str]:
    """The chunk of each id; where there is none, a name that no text contains."""
    found = {i: chunk for chunk, i in tokenizer["model"]["vocab"].items()}
    found |= {one["id"]: one["content"] for one in tokenizer.get("added_tokens", [])}
    if max(found) >= size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has the id {max(found)}, the embedding {size} rows: "
            "they belong to two models, or resize_token_embeddings was not called"
        )
    return [found.get(i, f"[PAD{i}]") for i in range(size)]


def _scores(chunks: list[str], merges: list) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(chunk, len(merges))) for chunk in chunks]


def _types(chunks: list[str], tokenizer: dict, unknown: int | None) -> list[int]:
    known = set(tokenizer["model"]["vocab"].values())
    types = [_NORMAL if i in known else _UNUSED for i in range(len(chunks))]
    for i, chunk in enumerate(chunks):
        if re.fullmatch("<0x[0-9A-F]{2}>", chunk):
            types[i] = _BYTE
    for one in tokenizer.get("added_tokens", []):
        types[one["id"]] = _CONTROL if one.get("special") else _USER_DEFINED
    if unknown is not None:
        types[unknown] = _UNKNOWN
    return types


def _begins_with_special(tokenizer: dict) -> bool:
    """Whether the tokenizer puts a special token in front of every text."""
    return any(
        "SpecialToken" in part
        for step in _steps(tokenizer.get("post_processor"), "processors")
        for part in step.get("single", [])[:1]
    )


def _prepends(tokenizer: dict) -> bool:
    """Whether the tokenizer puts a space in front of every text."""
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    splits = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step["type"] == "Prepend" for step in normalizers) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in splits
    )


def _steps(step: dict | None, key: str) -> list[dict]:
    """The steps of a sequence, or the one."""
    return [] if step is None else step.get(key, [step])


def _text(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): give the folder that holds the tokenizer") from error
