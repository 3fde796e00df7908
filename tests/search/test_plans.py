"""What is tried, with made-up results: what is lost rises with speed, and each layer in float wins some of it back."""

import math
from dataclasses import replace

import pytest
import torch

from tersor.errors import RecipeError
from tersor.measure.metric import MetricResult
from tersor.recipe import Prune, resolve
from tersor.search.goal import Goal
from tersor.search.judge import Judge
from tersor.search.plans import Menu, plans
from tersor.search.trial import Candidate, Facts, Trial

BASE = 0.9
CHOICES = [("b",), ("a", "b"), ("a", "b", "c")]


def trial_of(name="x", scores=None, **facts):
    recipe = resolve("int8-static")
    return Trial(Candidate(name, recipe), Facts(name=name, seconds=1, **facts), recipe, scores)


def judge_of(*asked, scores=None):
    before = MetricResult(BASE, scores)
    return Judge.of(Goal.parse(*asked), before, higher_is_better=True, fraction=True, seed=0)


def searched(judge, metric, speed=lambda times, kept: 2.0 * times * 0.9**kept, size=lambda times: 1000 / times, **menu):
    """All candidates in order, with the factor of the pruning and the number of layers in float of each."""
    found, each = [], plans(Menu(resolve("int8-static"), lambda: CHOICES, **menu), judge)
    candidate = next(each)
    while True:
        prunes = [s for s in candidate.recipe.steps if isinstance(s, Prune)]
        times = float(prunes[0].amount[1]) if prunes else 1.0
        kept = len(candidate.recipe.quantize.rules)
        value = metric(times, kept)
        facts = (
            Facts(name=candidate.name, seconds=1.0, error="no") if value is None
            else Facts(name=candidate.name, seconds=1.0, metric=value, speedup=speed(times, kept),
                       over_first=speed(times, kept) / 2.0, bytes=int(size(times)))
        )  # fmt: skip
        found.append((times, kept, Trial(candidate, facts, candidate.recipe)))
        try:
            candidate = each.send(found[-1][2])
        except StopIteration:
            return found


@pytest.mark.parametrize("limit", [1.05, 1.2, 1.37, 1.9, 2.6])
def test_the_speed_at_which_too_much_is_lost_is_found(limit):
    judge = judge_of(0.5, None, None)
    found = searched(judge, lambda times, kept: BASE - (0.001 if times <= limit else 0.02))
    best = judge.best([t for _, _, t in found])
    good = max(times for times, _, t in found if judge.loses_little(t))
    assert best.facts.over_first == pytest.approx(good)
    assert limit / 1.08 <= good <= limit
    assert len(found) <= 10


def test_layers_stay_in_float_first_where_the_formats_alone_lose_too_much():
    judge = judge_of(0.5, None, None)
    found = searched(judge, lambda times, kept: BASE - (0.02 if kept < 2 else 0.001) - (0.02 if times > 1.3 else 0))
    assert [(times, kept) for times, kept, _ in found][:4] == [(1.0, 0), (1.0, 1), (1.0, 2), (1.25, 2)]
    best = judge.best([t for _, _, t in found])
    (prune,) = (s for s in best.recipe.steps if isinstance(s, Prune))
    assert prune.keep == ("a", "b")
    assert [r.layer for r in best.recipe.quantize.rules] == ["a", "b"]


def test_where_nothing_keeps_the_contract_the_nearest_is_given():
    judge = judge_of(0.1, None, None)
    found = searched(judge, lambda times, kept: BASE - 0.02 + 0.001 * kept)
    assert [kept for _, kept, _ in found] == [0, 1, 2, 3]
    best = judge.best([t for _, _, t in found])
    assert best is found[-1][2]
    assert not judge.loses_little(best)


@pytest.mark.parametrize("better", [("branches",), ("channels", "branches")])
def test_what_loses_less_at_first_is_gone_on_with(better):
    found, each = [], plans(Menu(resolve("int8-static"), lambda: CHOICES), judge_of(0.5, None, None))
    candidate = next(each)
    for _ in range(6):
        prunes = [s for s in candidate.recipe.steps if isinstance(s, Prune)]
        lost = 0.0 if not prunes or prunes[0].structure == better else 0.004
        found.append(prunes[0].structure if prunes else None)
        candidate = each.send(trial_of(metric=BASE - lost, over_first=1.0 if not prunes else prunes[0].amount[1]))
    assert found[:3] == [None, ("branches",), ("channels", "branches")]
    assert set(found[3:]) == {better}


def test_a_search_ends_where_the_same_network_comes_again():
    each, recipe = plans(Menu(resolve("int8-static"), lambda: CHOICES), judge_of(0.5, None, None)), resolve("fp16")
    candidate, asked = next(each), []
    while True:
        asked.append(candidate.name)
        made = trial_of(metric=BASE - 0.04 * (len(asked) > 1), over_first=1.2)
        try:
            candidate = each.send(replace(made, recipe=recipe))
        except StopIteration:
            break
    assert len(asked) == 4  # the first, both kinds at 1.25x, and one try below


def test_what_fails_counts_as_too_much():
    judge = judge_of(0.5, None, None)
    found = searched(judge, lambda times, kept: None if times > 1.2 else BASE)
    assert found[1][2].failed
    assert judge.best([t for _, _, t in found]).facts.over_first <= 1.2
    with pytest.raises(RecipeError, match="nothing is asked"):
        judge_of(None, None, None)


def test_a_speed_is_reached_with_as_little_loss_as_possible():
    judge = judge_of(None, 3.0, None)
    found = searched(judge, lambda times, kept: BASE - 0.01 * (times - 1), speed=lambda times, kept: 1.8 * times**0.9)
    best = judge.best([t for _, _, t in found])
    assert 3.0 <= best.facts.speedup < 3.3
    assert len(found) <= 4
    slow = judge_of(None, 1.7, None)
    found = searched(slow, lambda times, kept: BASE - 0.01 + 0.002 * kept)
    assert [kept for _, kept, _ in found] == [0, 1, 2]  # the second is too slow
    assert slow.best([t for _, _, t in found]).facts.metric == pytest.approx(BASE - 0.008)


def test_a_size_is_reached_by_bytes():
    judge = judge_of(None, None, 700)
    found = searched(judge, lambda times, kept: BASE - 0.01 * times)
    best = judge.best([t for _, _, t in found])
    assert best.facts.bytes <= 700
    assert next(s for s in best.recipe.steps if isinstance(s, Prune)).amount[0] == "bytes"


def test_shapes_stay_where_that_is_asked():
    found = searched(judge_of(0.5, None, None), lambda times, kept: BASE, narrower=False)
    assert len(found) == 1


def test_one_half_chooses_and_the_other_judges():
    scores = (torch.arange(1000) % 10 != 0).double()
    judge = judge_of(0.5, None, None, scores=scores)
    worse = scores.clone()
    worse[judge.judging[:50]] = 0  # a choice does not see it
    trial = trial_of(scores=worse, metric=float(worse.mean()))
    assert judge.drop(trial) == (0.0, 0.0)
    verdict = judge.verdict(trial)
    assert verdict.samples == 500
    assert verdict.drop == pytest.approx(float((scores - worse)[judge.judging].mean()))
    assert not verdict.kept
    assert sorted([*judge.choosing.tolist(), *judge.judging.tolist()]) == list(range(1000))


def test_a_standard_error_is_spared():
    scores = torch.ones(2000, dtype=torch.float64)
    judge = judge_of(0.5, None, None, scores=scores)
    near = scores.clone()
    near[judge.choosing[:4]] = 0  # 0.4 points, give or take 0.2
    drop, doubt = judge.drop(trial_of(scores=near))
    assert drop == pytest.approx(0.004)
    assert doubt == pytest.approx(math.sqrt(0.004 * 0.996 / 1000), rel=1e-6)
    assert not judge.loses_little(trial_of(scores=near))


def test_of_equally_fast_ones_that_which_loses_least_is_taken():
    judge = judge_of(1.0, None, None)
    made = [
        trial_of("a", metric=BASE - 0.005, over_first=1.5, speedup=3.0),
        trial_of("b", metric=BASE - 0.001, over_first=1.49, speedup=3.0),
        trial_of("c", metric=BASE, over_first=1.3, speedup=2.6),
    ]
    assert judge.best(made).facts.name == "b"
