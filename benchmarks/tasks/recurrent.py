"""textgenrnn (LSTM, next characters) and g2p (GRU, spelling to phonemes) in plain torch, with their scores."""

import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from networks import load
from pictures import shared
from torch import Tensor, nn

CONTEXT = 40  # characters
LONGEST, STEPS = 24, 20  # letters and phonemes at most


class TextGen(nn.Module):
    """``[batch, CONTEXT]`` characters → scores of the next one: two LSTMs, averaged by attention."""

    def __init__(self, characters: int = 465) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, 100)
        self.rnn1, self.rnn2 = nn.LSTM(100, 128, batch_first=True), nn.LSTM(128, 128, batch_first=True)
        self.att, self.out = nn.Linear(356, 1, bias=False), nn.Linear(356, characters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        first, _ = self.rnn1(x)
        second, _ = self.rnn2(first)
        every = torch.cat([x, first, second], -1)
        return self.out((self.att(every).softmax(1) * every).sum(1))


def textgen() -> nn.Module:
    """The trained network."""
    return load(TextGen(), shared() / "data/textgenrnn/model.safetensors")


def titles(count: int = 500, start: int = 0) -> tuple[Tensor, Tensor]:
    """Every next character of so many titles, and what stands before it, filled up with 0 from the left."""
    folder = shared() / "data/textgenrnn"
    numbers = json.loads((folder / "vocab.json").read_text(encoding="utf8"))
    contexts, wanted = [], []
    lines = (folder / "hacker_news_2000.txt").read_text(encoding="utf8").split("\n")[1:]
    for line in [text for text in lines if text][start : start + count]:
        ids = [numbers["<s>"], *(numbers[c] for c in line if c in numbers), numbers["<s>"]]
        for end in range(1, len(ids)):
            seen = ids[max(0, end - CONTEXT) : end]
            contexts.append([0] * (CONTEXT - len(seen)) + seen)
            wanted.append(ids[end])
    return torch.tensor(contexts), torch.tensor(wanted)


@torch.no_grad()
def bits(network: Any, contexts: Tensor, wanted: Tensor) -> Tensor:
    """Bits of every character; their mean is ``tersor.metrics.bits_per_character``."""
    scores = torch.cat([network(x) for x in contexts.split(1000)])
    return F.cross_entropy(scores, wanted, reduction="none") / math.log(2)


LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_OTHERS = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH".split()
PHONES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([v + stress for v in _VOWELS for stress in "012"] + _OTHERS)]


class Spelling(nn.Module):
    """Words → phonemes: a GRU reads the letters, another says the sounds, each the likeliest."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_emb, self.dec_emb = nn.Embedding(len(LETTERS), 256), nn.Embedding(len(PHONES), 256)
        self.encoder, self.decoder = (nn.GRU(256, 256, batch_first=True) for _ in range(2))
        self.fc = nn.Linear(256, len(PHONES))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Letters ``[batch, longest]`` and their counts → scores of the phonemes ``[batch, STEPS, phones]``."""
        read, _ = self.encoder(self.enc_emb(ids))
        state = read[torch.arange(len(ids)), lengths - 1].unsqueeze(0).contiguous()
        sound, scores = torch.full((len(ids), 1), PHONES.index("<s>")), []
        for _ in range(STEPS):
            output, state = self.decoder(self.dec_emb(sound), state)
            scores.append(self.fc(output))
            sound = scores[-1].argmax(-1)
        return torch.cat(scores, 1)


def spelling() -> nn.Module:
    """The trained network."""
    return load(Spelling(), shared() / "data/g2p-gru/model.safetensors")


def dictionary(count: int = 3000, start: int = 0) -> list[tuple[str, list[list[str]]]]:
    """Words, and every way to say each."""
    lines = Path(shared() / "data/g2p-gru/cmudict_12000.txt").read_text(encoding="utf8").splitlines()
    rows = (line.split("\t") for line in lines[start : start + count])
    return [(word, [way.split() for way in ways.split("|")]) for word, ways in rows]


def spelled(words: list[str]) -> tuple[Tensor, Tensor]:
    """The letters of words, ``[words, LONGEST]``, and how many they are."""
    ids = torch.zeros(len(words), LONGEST, dtype=torch.long)
    for row, word in zip(ids, words, strict=True):
        row[: len(word) + 1] = torch.tensor([*map(LETTERS.index, word), LETTERS.index("</s>")])
    return ids, torch.tensor([len(word) + 1 for word in words])


@torch.no_grad()
def word_errors(network: Any, words: list[tuple[str, list[list[str]]]]) -> Tensor:
    """100 for every word that is said in none of the ways that the dictionary gives, else 0."""
    wrong: list[float] = []
    for start in range(0, len(words), 500):
        part = words[start : start + 500]
        said = network(*spelled([word for word, _ in part])).argmax(-1).tolist()
        names = [list(takewhile("</s>".__ne__, (PHONES[k] for k in row))) for row in said]
        wrong += [100.0 * (name not in ways) for name, (_, ways) in zip(names, part, strict=True)]
    return torch.tensor(wrong)
