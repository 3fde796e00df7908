"""The metrics against sums by hand, and what they refuse."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tersor
from tersor import metrics
from tersor.errors import MetricError

NAN, INF = math.nan, math.inf
FEW = st.integers(-3, 3)  # ties are frequent


def test_the_module_is_public():
    assert tersor.metrics is metrics
    assert "metrics" in tersor.__all__
    assert issubclass(MetricError, tersor.TersorError)


@given(st.lists(st.tuples(st.lists(FEW, min_size=4, max_size=4), st.integers(0, 3)), min_size=1), st.integers(1, 4))
def test_top_k_is_a_sorted_list_cut(rows, k):
    """Of equal scores the first class counts as the higher, as a stable sort has it."""
    scores, labels = [row for row, _ in rows], [label for _, label in rows]
    right = [label in sorted(range(4), key=lambda c: -row[c])[:k] for row, label in rows]
    assert metrics.hits(scores, labels, k).tolist() == right
    assert metrics.top_k(scores, labels, k) == pytest.approx(100 * sum(right) / len(right))


def test_hits_are_argmax_of_every_pixel():
    scores = torch.randn(2, 5, 5, 3, generator=torch.Generator().manual_seed(0)).round()
    labels = torch.arange(50).view(2, 5, 5) % 3
    found = metrics.hits(scores, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, (scores.argmax(-1) == labels).float())


def ranks(values):
    """From 1, the mean of the ranks where values are equal."""
    return [Fraction(sum(y < x for y in values)) + Fraction(sum(y == x for y in values) + 1, 2) for x in values]


def correlation(a, b):
    mean = [sum(x, Fraction(0)) / len(x) for x in (a, b)]
    a, b = ([y - m for y in x] for x, m in zip((a, b), mean, strict=True))
    product = [sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b))]
    return float(product[0]) / math.sqrt(product[1] * product[2])


PAIRS = st.lists(st.tuples(FEW, FEW), min_size=2, max_size=12)


@settings(max_examples=40)
@given(PAIRS.filter(lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))))
def test_correlations_by_fractions(pairs):
    a, b = zip(*pairs, strict=True)
    assert metrics.pearson(a, b) == pytest.approx(correlation(a, b), abs=1e-12)
    assert metrics.spearman(a, np.array(b)) == pytest.approx(correlation(ranks(a), ranks(b)), abs=1e-12)


def test_bits_and_perplexity_by_hand():
    """Likelihoods 1/2, 1/8 and 1/4 are 1, 3 and 2 bits; what is ignored may even be NaN."""
    likely = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], [[0.25, 0.25, 0.5], [NAN, NAN, NAN]]])
    targets = torch.tensor([[0, 1], [0, -1]])
    assert metrics.bits_per_character(likely.log() + 7, targets, ignore=-1) == pytest.approx(2)
    assert metrics.perplexity(likely.log() + 7, targets, ignore=-1) == pytest.approx(4)


def test_impossible_classes_may_score_minus_infinity():
    assert metrics.perplexity([[0.0, 0.0, -INF]], [1]) == pytest.approx(2)
    with pytest.raises(MetricError, match=r"loss of target 0 \(2\) is inf: its score is -inf"):
        metrics.perplexity([[0.0, 0.0, -INF]], [2])


@pytest.mark.parametrize("metric", [metrics.hits, metrics.top_k, metrics.perplexity, metrics.bits_per_character])
@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), r"`scores` is empty, of shape \[0, 3\]"),
        ([[0.0, 1.0]], [0, 1], r"shape \[1, 2\] and labels of shape \[2\]"),
        (1.0, 0, r"shape \[\] and labels"),
        ([[0.0, 1.0]], [2], "label 2 with 2 classes"),
        ([[0.0, 1.0]], [-1], "label -1 with 2 classes"),
        ([[0.0, 1.0]], [0.5], "labels are torch.float32: .*labels.long"),
        ([[0.0, 1.0]], [[0, 1]], r"one-hot become class numbers by labels.argmax\(-1\)"),
        ([[0.0, 1.0]], [[1]], r"labels.squeeze\(-1\)"),
        ([[0.0, NAN]], [0], "1 of 2 scores are NaN"),
        ([[0.0, 1.0], [2.0]], [0, 0], "`scores` is not an array"),
    ],
)
def test_scores_that_cannot_be_judged(metric, scores, labels, said):
    with pytest.raises(MetricError, match=said):
        metric(scores, labels)


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_that_is_no_choice(k):
    with pytest.raises(MetricError, match=f"k is {k} with 2 classes"):
        metrics.top_k([[0.0, 1.0]], [0], k)


def test_nothing_but_ignored_targets():
    with pytest.raises(MetricError, match="all 2 labels are -100"):
        metrics.perplexity(torch.zeros(2, 3), [-100, -100])


@pytest.mark.parametrize("metric", [metrics.spearman, metrics.pearson])
@pytest.mark.parametrize(
    ("predicted", "wanted", "said"),
    [
        ([], [], "empty"),
        ([1.0], [2.0], "at least two"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"shape \[2\], `wanted` \[3\]"),
        ([[1.0, 2.0]], [[1.0, 2.0]], r"shape \[1, 2\]"),
        ([1.0, NAN], [1.0, 2.0], "1 values of `predicted` are NaN"),
        ([1.0, 2.0], [INF, 2.0], "1 values of `wanted` are NaN or infinite"),
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], "`wanted` is 4.0 everywhere"),
    ],
)
def test_series_without_a_correlation(metric, predicted, wanted, said):
    with pytest.raises(MetricError, match=said):
        metric(predicted, wanted)


def edits(a, b):
    """The fewest words exchanged, left out or added, by trying everything."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b[1:]) + (a[0] != b[0]), edits(a[1:], b) + 1, edits(a, b[1:]) + 1)


TEXT = st.lists(st.sampled_from("abc"), max_size=4)


@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=4))
def test_word_error_by_trying_everything(pairs):
    said, wanted = ([" ".join(words) for words in column] for column in zip(*pairs, strict=True))
    expected = 100 * sum(edits(a, b) for a, b in pairs) / sum(len(b) for _, b in pairs)
    assert metrics.word_error(said, wanted) == pytest.approx(expected)


def test_any_blanks_part_words():
    assert metrics.word_error(["  the\tcat \n sat"], ["the cat sat"]) == 0


@pytest.mark.parametrize(
    ("said", "wanted", "words"),
    [
        ([], [], "0 said and 0 wanted"),
        (["a"], ["a", "b"], "1 said and 2 wanted"),
        (["a", "b"], ["a", " "], "reference 1 has no word"),
        ("a", "a", "`said` must be a list of texts"),
        (["a"], [["a"]], "`wanted` must be a list of texts"),
    ],
)
def test_texts_that_cannot_be_judged(said, wanted, words):
    with pytest.raises(MetricError, match=words):
        metrics.word_error(said, wanted)


def test_a_word_may_be_said_in_several_ways():
    allowed = [["tomato", "tomahto"], ["potato"], {"either", "eyether"}, ["data"]]
    assert metrics.word_accuracy(["tomahto", "potahto", "either", "data"], allowed) == 75


@pytest.mark.parametrize(
    ("said", "allowed", "words"),
    [
        ([], [], "0 said"),
        (["a"], [["a"], ["b"]], "1 said and 2 wanted"),
        (["a"], [[]], r"word 0 has the references \[\]"),
        (["a"], ["a"], "word 0 has the references 'a'"),
    ],
)
def test_words_that_cannot_be_judged(said, allowed, words):
    with pytest.raises(MetricError, match=words):
        metrics.word_accuracy(said, allowed)


def f1_of(pairs, kind):
    hit = sum(a == b == kind for a, b in pairs)
    return Fraction(2 * hit, sum(a == kind for a, _ in pairs) + sum(b == kind for _, b in pairs))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1))
def test_f1_by_counting(pairs):
    predicted, wanted = zip(*pairs, strict=True)
    kinds = set(predicted) | set(wanted)
    macro = sum(f1_of(pairs, kind) for kind in kinds) / len(kinds)
    weighted = sum(f1_of(pairs, kind) * wanted.count(kind) for kind in kinds) / len(pairs)
    assert metrics.f1(predicted, wanted, "macro") == pytest.approx(float(100 * macro))
    assert metrics.f1(predicted, wanted, "weighted") == pytest.approx(float(100 * weighted))
    binary = [(a == 1, b == 1) for a, b in pairs]
    if 1 in kinds:
        found = metrics.f1(*(torch.tensor(column) for column in zip(*binary, strict=True)))
        assert found == pytest.approx(float(100 * f1_of(pairs, 1)))


@pytest.mark.parametrize(
    ("predicted", "wanted", "average", "said"),
    [
        ([], [], "binary", "empty"),
        ([0, 1], [1], "binary", r"shape \[2\], `wanted` \[1\]"),
        ([0, 2], [0, 1], "binary", "class 2 in a binary F1"),
        ([0, 0], [0, 0], "binary", "class 1 is neither"),
        ([0.2, 0.9], [0, 1], "binary", "`predicted` is torch.float32"),
        ([0, 1], [0, 1], "samples", "average is 'samples'"),
    ],
)
def test_classes_that_cannot_be_judged(predicted, wanted, average, said):
    with pytest.raises(MetricError, match=said):
        metrics.f1(predicted, wanted, average)


@pytest.mark.parametrize(
    ("module", "call", "package"),
    [
        ("jiwer", lambda: metrics.word_error(["a"], ["a"]), "jiwer"),
        ("sklearn.metrics", lambda: metrics.f1([1], [1]), "scikit-learn"),
    ],
)
def test_an_absent_library_says_how_to_install_it(monkeypatch, module, call, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MetricError, match=rf'needs {package}.*pip install "tersor\[metrics\]"'):
        call()
