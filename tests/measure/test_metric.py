"""The judge's bad answers are named; the intervals cover what they promise."""

import math

import numpy as np
import pytest
import torch

from tersor.errors import TaskError
from tersor.measure import evaluate_metric, paired_interval
from tersor.measure.metric import Z95, bootstrap, metric_result, tango


@pytest.mark.parametrize(
    ("answer", "value", "samples"),
    [
        (0.5, 0.5, None),
        (1, 1.0, None),
        (np.float32(0.25), 0.25, None),
        (torch.tensor(0.75), 0.75, None),
        ([True, False], 0.5, 2),
        (np.array([1, 2, 3]), 2.0, 3),
        (torch.tensor([0.0, 1.0], requires_grad=True), 0.5, 2),
        ([torch.ones(3), torch.zeros(1)], 0.75, 4),
        ([np.array([True, False]), np.array([True, True])], 0.75, 4),
        ([torch.tensor(1.0), torch.tensor(0.0)], 0.5, 2),
    ],
)
def test_numbers_and_scores(answer, value, samples):
    found = metric_result(answer)
    assert (found.value, found.samples) == (value, samples)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        ([1.0, math.nan, math.nan], r"nan for sample 1 \(2 of 3"),
        ([], r"shape \[0\].*is the data empty"),
        ((0.9, 0.1), "a tuple of 2: return one metric"),
        ([[1.0]], r"shape \[1, 1\]"),
        (None, "NoneType"),
        ("0.9", "str"),
        ({"accuracy": 0.9}, "dict"),
    ],
)
def test_what_is_no_metric_is_named(answer, words):
    with pytest.raises(TaskError, match=words):
        metric_result(answer)


def test_an_evaluate_that_raises_is_named_with_its_cause():
    def evaluate(predict):
        raise KeyError("labels")

    with pytest.raises(TaskError, match=r"evaluate of the int8 network raised KeyError: 'labels'") as caught:
        evaluate_metric(evaluate, predict=print, what="the int8 network")
    assert isinstance(caught.value.__cause__, KeyError)


def test_predict_reaches_evaluate():
    assert evaluate_metric(lambda predict: predict(3), predict=lambda x: x / 4).value == 0.75


def _score_statistic(worse, better, samples, drop):
    """Tango's statistic with the nuisance probability maximised by brute force over a grid."""
    grid = np.linspace(max(0.0, -drop), (1 - drop) / 2, 400_001)[1:-1]
    same = samples - worse - better
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = worse * np.log(grid + drop) + better * np.log(grid) + same * np.log(1 - 2 * grid - drop)
    best = grid[np.nanargmax(likelihood)]
    return (worse - better - samples * drop) / math.sqrt(samples * (2 * best + drop - drop * drop))


@pytest.mark.parametrize(
    ("worse", "better", "samples"), [(12, 2, 50), (30, 28, 1000), (5, 1, 744), (1, 9, 100)]
)
def test_tangos_bounds_are_where_the_score_test_turns(worse, better, samples):
    low, high = tango(worse, better, samples)
    assert low < (worse - better) / samples < high
    assert _score_statistic(worse, better, samples, low) == pytest.approx(Z95, rel=1e-3)
    assert _score_statistic(worse, better, samples, high) == pytest.approx(-Z95, rel=1e-3)


def test_tango_without_a_difference_is_not_certain():
    # z²/(n + z²), the closed form for no discordant pair.
    low, high = tango(0, 0, 744)
    assert high == pytest.approx(Z95**2 / (744 + Z95**2), rel=1e-6)
    assert low == pytest.approx(-high)


@pytest.mark.parametrize("counts", [(1, 0, 1), (0, 1, 1), (10, 0, 10), (5, 5, 10)])
def test_tango_at_the_edges_stays_within_one(counts):
    low, high = tango(*counts)
    assert -1 <= low <= (counts[0] - counts[1]) / counts[2] <= high <= 1


def _covered(interval, truth, trials, draw):
    random = np.random.default_rng(0)
    found = [interval(draw(random)) for _ in range(trials)]
    return sum(low <= truth <= high for low, high in found) / trials


def test_tango_covers_95_percent():
    draw = lambda random: random.multinomial(500, [0.03, 0.01, 0.96])  # noqa: E731
    share = _covered(lambda n: tango(int(n[0]), int(n[1]), 500), truth=0.02, trials=2000, draw=draw)
    # Three standard errors of a share of 2000 trials are 1.5 points.
    assert 0.935 <= share <= 0.985


def test_the_bootstrap_covers_about_95_percent():
    draw = lambda random: random.normal(0.3, 1.0, 200)  # noqa: E731
    share = _covered(lambda x: bootstrap(x, draws=500), truth=0.3, trials=300, draw=draw)
    assert 0.90 <= share <= 0.99


def test_the_bootstrap_agrees_with_the_normal_interval():
    drops = np.random.default_rng(1).normal(0.1, 2.0, 20_000)
    low, high = bootstrap(drops)
    half = Z95 * drops.std() / math.sqrt(drops.size)
    assert low == pytest.approx(drops.mean() - half, abs=half / 10)
    assert high == pytest.approx(drops.mean() + half, abs=half / 10)


def test_the_bootstrap_is_seeded():
    drops = np.random.default_rng(2).normal(size=50)
    assert bootstrap(drops, seed=3) == bootstrap(drops, seed=3) != bootstrap(drops, seed=4)


def test_the_sign_is_that_of_the_drop():
    worse, better = torch.zeros(100), torch.ones(100)
    assert paired_interval(better, worse, higher_is_better=True)[0] > 0.9
    assert paired_interval(better, worse, higher_is_better=False)[1] < -0.9
    losses = torch.linspace(1, 2, 100)
    low, high = paired_interval(losses, losses + 0.5, higher_is_better=False)
    assert low == pytest.approx(0.5) == high


def test_unpaired_scores_are_refused():
    with pytest.raises(TaskError, match=r"\[3\] samples before and \[4\] after"):
        paired_interval(torch.ones(3), torch.ones(4), higher_is_better=True)
