"""Perplexity and KL divergence against sums written out, and on the real network against its own script."""

import importlib.util
import math
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from tersor.errors import MetricError
from tersor.measure import (
    Divergence,
    TextScore,
    Tokens,
    comparison,
    divergence,
    perplexity,
    tokens_of,
    windows_of,
)

VOCABULARY = 11


def text(count=60, bos=None):
    random = torch.Generator().manual_seed(0)
    return Tokens(torch.randint(VOCABULARY, (count,), generator=random), bos, "tokenizer", "text")


def model(seed):
    """Logits that depend on the token before and on how much was seen before it."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(20, VOCABULARY, VOCABULARY, generator=random)
    return lambda ids: table[torch.arange(ids.shape[1]).expand_as(ids), ids]


def scored(windows):
    """(window, position of the prediction) of all that counts."""
    last = windows.protocol.length - 1
    return [(k, t) for k in range(len(windows)) for t in range(windows.skipped(k), last)]


CASES = [{"length": 8}, {"length": 8, "stride": 3}, {"length": 20, "stride": 19}, {"length": 2}]


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [1, 4])
def test_perplexity_is_the_mean_over_the_scored_tokens(case, bos, batch):
    windows, predict = windows_of(text(bos=bos), **case), model(1)
    chances = predict(windows.ids).double().softmax(-1)
    losses = [-math.log(chances[k, t, windows.ids[k, t + 1]]) for k, t in scored(windows)]
    found = perplexity(predict, windows, batch=batch)
    assert found.nats == pytest.approx(math.fsum(losses) / len(losses), abs=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.nats))
    assert found.protocol == windows.protocol
    assert found.protocol.tokens == len(losses)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [1, 4])
def test_divergence_is_the_mean_over_the_scored_positions(case, batch):
    windows, ours, theirs = windows_of(text(), **case), model(1), model(2)
    q, p = (f(windows.ids).double().softmax(-1) for f in (ours, theirs))
    places = scored(windows)
    wanted = math.fsum(
        p[k, t, v].item() * math.log(p[k, t, v] / q[k, t, v]) for k, t in places for v in range(VOCABULARY)
    )
    found = divergence(ours, theirs, windows, batch=batch)
    assert found.nats == pytest.approx(wanted / len(places), abs=1e-6)
    assert found.agreement == pytest.approx(sum(int(p[a].argmax() == q[a].argmax()) for a in places) / len(places))
    assert found.protocol == windows.protocol


def test_a_model_does_not_diverge_from_itself():
    windows = windows_of(text(), 8)
    found = divergence(model(1), model(1), windows)
    assert (found.nats, found.standard_error, found.agreement) == (0, 0, 1)
    assert "same top prediction in 100.00 %; 8 windows of 8 tokens" in str(found)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("chunk", [2 * VOCABULARY, 2**24])
def test_one_pass_gives_the_figures_of_three(case, batch, chunk, monkeypatch):
    monkeypatch.setattr(sys.modules["tersor.measure.perplexity"], "_CHUNK", chunk)
    windows, ours, theirs, calls, told = windows_of(text(), **case), model(1), model(2), [], []
    counted = [lambda ids, k=k, f=f: calls.append(k) or f(ids) for k, f in enumerate((ours, theirs))]
    found = comparison(*counted, windows, batch=batch, progress=lambda *at: told.append(at))
    each = perplexity(theirs, windows, batch=batch), perplexity(ours, windows, batch=batch)
    assert found == (*each, divergence(ours, theirs, windows, batch=batch))
    assert found.model != found.reference
    assert calls == [0, 1] * math.ceil(len(windows) / batch)
    assert told[-1] == (len(windows), len(windows))


def test_the_standard_error_is_that_of_the_windows_mean():
    windows, predict = windows_of(text(), 8), model(1)
    each = torch.tensor([perplexity(predict, type(windows)(windows.ids[k : k + 1], windows.protocol)).nats
                         for k in range(len(windows))])  # fmt: skip
    found = perplexity(predict, windows)
    assert found.standard_error == pytest.approx(float(each.std() / len(each) ** 0.5), rel=1e-5)
    assert f"{found.nats:.4f} ± {found.standard_error:.4f} nats" in str(found)
    alone = perplexity(predict, windows_of(text(), 8, limit=1))
    assert alone.standard_error is None
    assert "± unknown" in str(alone)


def test_large_vocabularies_are_taken_in_parts(monkeypatch):
    windows = windows_of(text(), 8, 3)
    whole = perplexity(model(1), windows), divergence(model(1), model(2), windows)
    monkeypatch.setattr(sys.modules["tersor.measure.perplexity"], "_CHUNK", 2 * VOCABULARY)
    parts = perplexity(model(1), windows), divergence(model(1), model(2), windows)
    assert parts == whole


def test_models_of_transformers_half_precision_and_progress():
    windows, seen = windows_of(text(), 8), []
    logits = model(1)
    wrapped = lambda ids: SimpleNamespace(logits=logits(ids).bfloat16())  # noqa: E731
    told = perplexity(wrapped, windows, batch=5, progress=lambda *at: seen.append(at))
    assert told.nats == pytest.approx(perplexity(logits, windows).nats, abs=0.01)
    assert seen == [(5, 8), (8, 8)]


def test_scores_travel_as_json():
    windows = windows_of(text(), 8)
    score, far = perplexity(model(1), windows), divergence(model(1), model(2), windows)
    assert TextScore.model_validate_json(score.model_dump_json()) == score
    assert Divergence.model_validate_json(far.model_dump_json()) == far


def test_what_the_reference_excludes_does_not_count_and_what_the_model_excludes_is_an_error():
    windows = windows_of(Tokens(torch.zeros(4, dtype=torch.int64), None, "", ""), 4)
    both, one = torch.zeros(2), torch.tensor([0.0, -math.inf])
    even, sure = (lambda ids, row=row: row.expand(*ids.shape, 2) for row in (both, one))
    assert divergence(even, sure, windows).nats == pytest.approx(math.log(2))
    with pytest.raises(MetricError, match=r"^window 0, token 1: the logits give inf nats"):
        divergence(sure, even, windows)


def test_the_place_of_a_nan_is_named():
    windows, calls = windows_of(text(), 8), []

    def predict(ids):
        calls.append(len(ids))
        logits = model(1)(ids)
        if len(calls) == 2:
            logits[1, 4, 3] = math.nan
        return logits

    with pytest.raises(MetricError, match=r"^window 5, token 5: the logits give nan nats.*float32"):
        perplexity(predict, windows, batch=4)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda w: perplexity(lambda ids: torch.zeros(*ids.shape, 5), w), "has token 10, but the model knows 5"),
        (lambda w: perplexity(lambda ids: torch.zeros(len(ids), 11), w), r"returned \[7, 11\] for ids of shape"),
        (lambda w: perplexity(lambda ids: None, w), "returned NoneType"),
        (lambda w: perplexity(model(1), w, batch=0), "batch is 0"),
        (
            lambda w: divergence(lambda ids: torch.zeros(*ids.shape, 12), model(1), w),
            "the model knows 12 tokens and the reference 11",
        ),
        (lambda w: comparison(model(1), lambda ids: model(1)(ids) * math.nan, w), "window 0, token 1: .* nan nats"),
        (lambda w: comparison(lambda ids: model(1)(ids) * math.nan, model(1), w), "window 0, token 1: .* nan nats"),
    ],
)
def test_what_cannot_be_judged_is_refused(run, words):
    with pytest.raises(MetricError, match=words):
        run(windows_of(text(), 9))


@pytest.fixture(scope="module")
def stories(shared, tmp_path_factory):
    """The network in transformers, its text in windows, and the script that came with it."""
    transformers = pytest.importorskip("transformers")
    from scripts.stories260k import write

    source = shared / "data/stories260k"
    folder = write(tmp_path_factory.mktemp("stories"), source)
    spec = importlib.util.spec_from_file_location("stories_check", source / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    words = (source / "tinystories_valid.txt").read_text(encoding="utf-8")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        # The script leaves closing its file to the interpreter.
        own = check.Tokenizer(str(source / "tok512.json"))
    return network, transformers.AutoTokenizer.from_pretrained(folder), words, check, own


@pytest.mark.real
def test_the_real_network_scores_what_its_own_script_says(stories):
    network, tokenizer, words, check, own = stories
    words = words[:20_000]
    windows = windows_of(tokens_of(tokenizer, words), 512, limit=4)
    rows = check.windows(own, words)[:4]
    assert windows.ids.tolist() == rows
    wanted, count = check.cross_entropy(check.build(), rows)
    found = perplexity(network, windows, batch=2)
    assert found.nats == pytest.approx(wanted, abs=1e-5)
    assert found.protocol.tokens == count


@pytest.mark.real
@pytest.mark.slow
def test_the_pinned_figure_of_the_real_network(stories):
    network, tokenizer, words, *_ = stories
    found = perplexity(network, windows_of(tokens_of(tokenizer, words), 512, limit=200))
    assert found.nats == pytest.approx(1.5057, abs=5e-5)
    assert found.protocol.tokens == 200 * 511
