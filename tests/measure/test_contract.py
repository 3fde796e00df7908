"""The contract on a metric: bounds in the right unit, verdicts by the interval, and samples that do prove it."""

import math

import pytest
import torch

from tersor.errors import TaskError
from tersor.measure.choosing.contract import Allowed, Verdict, halves, judged
from tersor.measure.metric import tango


@pytest.mark.parametrize(
    ("text", "before", "fraction", "bound"),
    [
        ("0.5", 0.93, True, 0.005), ("0.5", 80.0, False, 0.5), ("0.5%", 0.9, True, 0.0045), (2, 3.0, False, 2.0),
        ("1 %", 40.0, False, 0.4), (" .25 ", 0.5, True, 0.0025), ("0", 0.9, True, 0.0), ("1%", -2.0, False, 0.02),
    ],
)  # fmt: skip
def test_a_bound_is_in_the_unit_that_is_shown(text, before, fraction, bound):
    assert Allowed.parse(text).bound(before, fraction) == pytest.approx(bound)


@pytest.mark.parametrize("text", ["", "-1", "half", "1e400", "nan", "0.5 points", "%", True, "1%%"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(TaskError, match=r"such as 0\.5"):
        Allowed.parse(text)


def hits(worse, better, samples):
    """Paired hits: so many are lost, so many are won."""
    before, after = torch.ones(samples), torch.ones(samples)
    after[:worse] = 0
    before[worse : worse + better] = 0
    return before, after


def test_verdicts_follow_the_interval():
    kept = judged(*hits(2, 2, 10_000), 0.005, higher_is_better=True)
    assert (kept.kept, kept.proven, kept.broken) == (True, True, False)
    assert kept.needed == 10_000
    assert "kept: 0.00 points of 0.50 points lost" in kept.sentence(fraction=True)
    broken = judged(*hits(400, 10, 10_000), 0.005, higher_is_better=True)
    assert (broken.kept, broken.proven, broken.broken, broken.needed) == (False, False, True, None)
    assert "broken: 3.90 points" in broken.sentence(fraction=True)
    open_ = judged(*hits(12, 9, 1000), 0.005, higher_is_better=True)
    assert (open_.kept, open_.proven, open_.broken) == (True, False, False)
    assert open_.needed > 1000
    assert "Not proven with 1000 samples: 0.30 points of 0.50 points lost" in open_.sentence(fraction=True)
    assert f"{open_.needed} would do" in open_.sentence(fraction=True)
    over = judged(*hits(12, 5, 1000), 0.005, higher_is_better=True)
    assert (over.kept, over.broken, over.needed) == (False, False, None)
    assert "chance may explain it" in over.sentence(fraction=True)


@pytest.mark.parametrize(
    ("worse", "better", "samples", "bound"), [(12, 9, 1000, 0.005), (3, 1, 200, 0.02), (0, 0, 50, 0.01)]
)
def test_so_many_hits_prove_it_and_a_tenth_fewer_do_not(worse, better, samples, bound):
    needed = judged(*hits(worse, better, samples), bound, higher_is_better=True).needed
    rates = worse / samples, better / samples

    def high(count):
        return tango(rates[0] * count, rates[1] * count, count)[1]

    assert high(needed) <= bound
    assert high(round(0.9 * needed)) > bound


@pytest.mark.parametrize("better", [True, False])
def test_so_many_scores_prove_it_most_of_the_time(better):
    generator = torch.Generator().manual_seed(0)

    def scores(count):
        before = torch.randn(count, generator=generator)
        lost = 0.1 + torch.randn(count, generator=generator)
        return before, before - lost if better else before + lost

    first = judged(*scores(400), 0.15, higher_is_better=better)
    assert not first.proven
    assert first.needed is None or first.needed > 400
    count = math.ceil((1.96 / 0.05) ** 2)  # of the true mean and deviation
    asked = [judged(*scores(2000), 0.15, higher_is_better=better).needed for _ in range(15)]
    typical = sorted(a for a in asked if a is not None)
    assert count / 3 < typical[len(typical) // 2] < 3 * count
    proven = [judged(*scores(4 * count), 0.15, higher_is_better=better).proven for _ in range(10)]
    assert sum(proven) >= 8


def test_a_drop_that_no_number_proves_needs_none():
    same = torch.rand(300, generator=torch.Generator().manual_seed(0))
    assert judged(same, same - 0.1, 0.1 - 1e-12, higher_is_better=True).needed is None
    assert judged(same, same, 0.0, higher_is_better=True).proven
    flat = judged(*hits(0, 0, 100), 0.0, higher_is_better=True)
    assert (flat.kept, flat.proven, flat.needed) == (True, False, None)


def test_unequal_numbers_of_scores_are_refused():
    with pytest.raises(TaskError, match="score the same samples"):
        judged(torch.ones(5), torch.ones(4), 0.1, higher_is_better=True)


def test_halves_are_disjoint_and_depend_on_the_seed_alone():
    one, other = halves(101, 3)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(101))
    assert one.tolist() == halves(101, 3)[0].tolist() != halves(101, 4)[0].tolist()


def test_a_verdict_states_values_in_the_metrics_own_unit():
    text = Verdict(0.5, 0.1, (-0.2, 0.4), 30, 30).sentence(fraction=False)
    assert text == "The contract is kept: 0.1 of 0.5 lost (-0.2 to 0.4, 30 samples)."
