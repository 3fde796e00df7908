"""all-MiniLM-L6-v2 in plain torch, its tokenizer, and the STS benchmark."""

import csv
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.metrics import spearman

LENGTH = 64  # tokens, padded; the longest sentence of the benchmark has fewer


class Block(nn.Module):
    """BERT's: attention and two linear layers, each with a residual sum and a LayerNorm behind it."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ln1, self.ln2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.ln1(x + self.o(seen.transpose(1, 2).flatten(2)))
        return self.ln2(x + self.fc2(F.gelu(self.fc1(x))))


class SentenceEncoder(nn.Module):
    """Token numbers and a mask ``[batch, tokens]`` → vectors of unit length ``[batch, width]``."""

    def __init__(
        self, words: int = 30522, width: int = 384, hidden: int = 1536, heads: int = 12, layers: int = 6
    ) -> None:
        super().__init__()
        self.word, self.pos, self.seg = (nn.Embedding(n, width) for n in (words, 512, 2))
        self.ln = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Block(width, hidden, heads) for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.ln(self.word(ids) + self.pos(place) + self.seg(torch.zeros_like(place)))
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        share = mask.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * share).sum(1) / share.sum(1), dim=-1)


class WordPieces:
    """BERT's uncased tokenizer: words cut greedily into the longest known pieces."""

    def __init__(self, vocabulary: Path) -> None:
        self.numbers = {w: k for k, w in enumerate(vocabulary.read_text(encoding="utf8").splitlines())}

    def __call__(self, text: str) -> list[int]:
        """The numbers of a sentence, with its start and end, at most LENGTH of them."""
        inside = [n for word in _words(text) for n in self._pieces(word)]
        return [self.numbers["[CLS]"], *inside[: LENGTH - 2], self.numbers["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        found: list[int] = []
        while word and word != "##":
            end = next((k for k in range(len(word), 0, -1) if word[:k] in self.numbers and word[:k] != "##"), 0)
            if not end:
                return [self.numbers["[UNK]"]]
            found.append(self.numbers[word[:end]])
            word = "##" + word[end:]
        return found


def _words(text: str) -> list[str]:
    """Lower case without accents; punctuation and Chinese characters stand alone."""
    out = []
    for letter in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(letter)
        if kind == "Mn" or (kind[0] == "C" and letter not in "\t\n\r"):
            continue
        symbol = letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " "
        alone = symbol or kind[0] == "P" or "一" <= letter <= "鿿" or "㐀" <= letter <= "䶿"
        out.append(f" {letter} " if alone else letter)
    return "".join(out).split()


def padded(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token numbers and their mask, ``[sentences, LENGTH]``."""
    ids = torch.zeros(len(sentences), LENGTH, dtype=torch.long)
    for row, numbers in zip(ids, sentences, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    counts = torch.tensor([len(n) for n in sentences])
    return ids, torch.arange(LENGTH) < counts[:, None]


class Benchmark:
    """Pairs of sentences and how alike people found them."""

    def __init__(self, folder: Path, split: str) -> None:
        words = WordPieces(folder / "vocab.txt")
        with (folder / f"stsb-en-{split}.csv").open(encoding="utf8", newline="") as file:
            rows = list(csv.reader(file))
        self.sentences = [words(row[k]) for row in rows for k in (0, 1)]
        self.scores = [float(row[2]) for row in rows]

    def batches(self, size: int = 32, count: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The sentences in order, or the first ``count`` of them."""
        chosen = self.sentences[:count]
        for start in range(0, len(chosen), size):
            yield padded(chosen[start : start + size])

    def spearman(self, predict: Callable[[Tensor, Tensor], Tensor]) -> float:
        """100 · Spearman's correlation of the cosine of each pair with people's score."""
        vectors = torch.cat([predict(*batch) for batch in self.batches()]).unflatten(0, (-1, 2))
        return 100 * spearman(vectors.prod(1).sum(1), self.scores)
