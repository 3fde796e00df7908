"""A text in windows: every token is predicted once, and what was pinned is told."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import MetricError
from tersor.measure import Tokens, tokens_of, windows_of


class Letters:
    """A tokenizer of letters, as transformers' are called."""

    bos_token_id = 1

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [ord(letter) for letter in text]

    def get_vocab(self):
        return {chr(k): k for k in range(128)}


def tokens(count, bos=None):
    return Tokens(torch.arange(100, 100 + count), bos, "tokenizer", "text")


@given(st.data(), st.booleans())
def test_every_token_is_predicted_once_in_the_order_of_the_text(data, begun):
    length = data.draw(st.integers(2, 9))
    stride = data.draw(st.integers(1, length - 1))
    given_tokens = tokens(data.draw(st.integers(length, 40)), 1 if begun else None)
    windows = windows_of(given_tokens, length, stride)
    predicted = [t for k, row in enumerate(windows.ids) for t in row[1 + windows.skipped(k) :].tolist()]
    first = 100 if begun else 101
    assert predicted == list(range(first, first + len(predicted)))
    assert windows.protocol.tokens == len(predicted)
    left = len(given_tokens.ids) - (len(predicted) + (0 if begun else 1))
    assert 0 <= left < stride, "only what fills no window is left out"
    assert all((row[0] == 1) == begun for row in windows.ids)


def test_a_text_that_fills_the_windows_exactly_is_used_up():
    assert windows_of(tokens(6, bos=1), 4).ids.tolist() == [[1, 100, 101, 102], [1, 103, 104, 105]]
    assert windows_of(tokens(7), 4).ids.tolist() == [[100, 101, 102, 103], [103, 104, 105, 106]]
    assert len(windows_of(tokens(40), 4, limit=3)) == 3


def test_tokens_carry_the_hash_of_their_file_and_of_the_tokenizer():
    text = "Tür zu"
    found = tokens_of(Letters(), text)
    assert found.ids.tolist() == [ord(letter) for letter in text]
    assert found.data == hashlib.sha256(text.encode()).hexdigest()
    other = Letters()
    other.get_vocab = lambda: {"a": 1}
    assert found.tokenizer == tokens_of(Letters(), "else").tokenizer != tokens_of(other, text).tokenizer


def test_the_hash_of_a_fast_tokenizer_does_not_change_with_the_calls_made_of_it():
    def fast(**told):
        tokenizer = Letters()
        tokenizer.encode = lambda text, add_special_tokens, verbose: [0]
        tokenizer.backend_tokenizer = SimpleNamespace(to_str=lambda: json.dumps(told))
        return tokens_of(tokenizer, "text").tokenizer

    plain = fast(merges=["a b"], truncation=None, padding=None)
    assert plain == fast(merges=["a b"], truncation={"max_length": 5}, padding=None)
    assert plain != fast(merges=["b a"], truncation=None, padding=None)


def test_the_protocol_says_everything():
    said = str(windows_of(tokens(50, bos=1), 8, 4).protocol)
    assert said == "11 windows of 8 tokens with BOS, stride 4, 47 predicted; tokenizer tokenizer, text text"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: windows_of(tokens(6), 7), "the text has 6 tokens, and one window of 7 needs 7: pass more text"),
        (lambda: windows_of(tokens(5, bos=1), 7), "has 5 tokens, and one window of 7 needs 6"),
        (lambda: windows_of(tokens(9), 4, 4), "windows of 4 tokens with stride 4"),
        (lambda: windows_of(tokens(9), 1), "windows of 1 tokens"),
        (lambda: windows_of(tokens(9), 4, limit=0), "limit 0"),
        (lambda: tokens_of(Letters(), " \n"), "has 2 characters and no word"),
    ],
)
def test_what_cannot_be_cut_is_refused(made, words):
    with pytest.raises(MetricError, match=words):
        made()
