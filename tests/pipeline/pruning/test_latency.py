"""A target in latency, with an engine whose latencies are made up: it buys what is rewarded, and checks promises."""

import itertools
import math

import numpy as np
import pytest

import tersor
from tersor.errors import RecipeError
from tersor.network.groups import branches, macs
from tersor.network.groups.costs import macs_of
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.pruning import step
from tersor.pipeline.graph.pruning.selection import Offer, allowed, bought, reaching, taken, uniform
from tersor.pipeline.graph.pruning.timed.speed import cheapest
from tersor.pipeline.graph.pruning.timed.stairs import Clock, Share
from tersor.recipe import Prune, Quantize, Recipe
from tests.pipeline.pruning.test_prune import FLOAT, run, task_of


def blocks(network, size=4):
    """A latency that falls only where a convolution's outputs fall to a multiple of ``size``, and one for each."""
    total = 0.0
    for node in network.operators():
        if macs_of(node):
            outputs, inputs = (math.ceil(n / size) * size for n in node.args[1].meta["val"].shape[:2])
            total += 1 + outputs * inputs * node.args[1].meta["val"][0, 0].numel() / 100
    return total


class MadeUp(Clock):
    """Latencies as ``tells`` says."""

    tells = staticmethod(blocks)

    def __init__(self, compiled, dense, store=None):
        self.dense, self.asked = self.tells(dense), 0

    def __call__(self, networks, rounds=0, seconds=0.0):
        self.asked += len(networks)
        shares = [self.tells(n) / self.dense for n in networks]
        return [Share(s, s) for s in shares]

    def milliseconds(self):
        return self.dense


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(step, "Clock", MadeUp)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "1.3x latency", "rounds": 2}, {"target": "1.5x macs", "structure": ["channels", "branches"]},
        {"target": "1.2x macs", "structure": "branches", "rounds": 1}, {"target": "40% channels", "score": "magnitude"},
    ],
)  # fmt: skip
def test_what_was_chosen_is_made_again_without_choosing(made_up, options, monkeypatch):
    task = task_of()
    first = run(task, **options)
    pinned = first.prunings[0].pinned
    assert pinned.target == "widths"
    monkeypatch.setattr(step, "Clock", None)
    recipe = Recipe.from_yaml(Recipe(steps=[pinned, Quantize(**FLOAT)]).to_yaml())
    again = tersor.compress(task, recipe, "torch", report=False, progress=False, threads=1)
    assert again.prunings[0].kept == first.prunings[0].kept
    assert again.prunings[0].branches == first.prunings[0].branches
    assert again.prunings[0].pinned == pinned
    for (name, a), (_, b) in zip(again.network.tensors(), first.network.tensors(), strict=True):
        assert np.array_equal(a, b), name


def test_widths_of_another_network_are_refused():
    wide = {"target": "widths", "rounds": 1}
    with pytest.raises(RecipeError, match=r"no group or branch .* named nothing"):
        run(task_of(), **wide, widths={"nothing": [3]})
    with pytest.raises(RecipeError, match="no group or branch"):
        run(task_of(), **wide, dropped={"0": 1})
    with pytest.raises(ValueError, match="go together"):
        run(task_of(), **wide)
    with pytest.raises(ValueError, match="one for each of 1 rounds"):
        run(task_of(), **wide, widths={"0.weight": [3, 2]})
    with pytest.raises(ValueError, match="round 2 of 1"):
        run(task_of(), **wide, dropped={"0": 2})


def test_what_the_engine_rewards_is_taken_and_nothing_else(made_up):
    task = task_of()
    done = run(task, target="1.3x latency", rounds=2)
    (record,) = done.prunings
    narrower = [w for w in record.widths if w.after < w.before]
    assert narrower
    assert all(w.after % 4 == 0 for w in narrower)
    assert record.faster == pytest.approx(blocks(captured(task)) / blocks(done.network), rel=1e-6)
    assert record.faster >= 1.3


def test_branches_go_where_they_are_worth_it(made_up):
    task = task_of()
    channels = run(task, target="1.2x", rounds=1, most=0.99)
    both = run(task, target="1.2x", rounds=1, most=0.99, structure=["channels", "branches"])
    assert not channels.prunings[0].branches
    assert both.prunings[0].faster >= 1.2
    alone = run(task, target="1.2x", rounds=1, structure="branches")
    assert alone.prunings[0].branches
    assert not any(w.after < w.before for w in alone.prunings[0].widths)
    assert macs(alone.network) < macs(captured(task))
    assert len(branches(alone.network)) == len(branches(captured(task))) - len(alone.prunings[0].branches)


def test_a_branch_counts_in_a_target_of_multiplications_too():
    done = run(task_of(), target="1.5x macs", structure="branches", rounds=1)
    (record,) = done.prunings
    assert record.branches
    assert record.macs == (macs(captured(task_of())), macs(done.network))


def test_promises_that_do_not_hold_are_corrected_by_measuring_again(monkeypatch):
    class Less(MadeUp):
        def __call__(self, networks, rounds=0, seconds=0.0):
            found = super().__call__(networks)  # one network alone, the plan, saves half as much
            return found if len(networks) > 1 else [Share(1 - (1 - s.median) / 2, 0.0) for s in found]

    monkeypatch.setattr(step, "Clock", Less)
    done = run(task_of(), target="1.2x latency", rounds=1)
    assert done.prunings[0].faster >= 1.2
    assert blocks(captured(task_of())) / blocks(done.network) > 1.35


def test_what_cannot_be_reached_says_how_far_it_got(made_up):
    with pytest.raises(RecipeError, match=r"50x latency was not reached: \d\.\d\dx was measured in the engine"):
        run(task_of(), target="50x latency", rounds=1)


def test_several_engines_or_a_score_that_compares_nothing_are_refused():
    with pytest.raises(RecipeError, match="name one engine"):
        run(task_of(), "auto", target="1.2x", quantize={})
    with pytest.raises(RecipeError, match="take obs or fisher"):
        run(task_of(), target="2x macs", structure=["channels", "branches"], score="magnitude")
    with pytest.raises(RecipeError, match="step of its own"):
        run(task_of(), target="2x macs", structure=["channels", "rank"])


@pytest.mark.slow
def test_a_real_engine_is_measured():
    done = run(task_of(), "openvino", target="1.05x", rounds=1, structure=["channels", "branches"], quantize={})
    assert done.prunings[0].faster >= 1.05


def offer(size, loss, saved, **options):
    counts = allowed(size)
    return Offer(range(size), counts, np.array(loss, float)[counts], np.array(saved, float)[counts], **options)


def test_a_price_buys_the_best_of_all_choices():
    """Against all choices of three small offers: none with as little cost loses less, at the prices' corners."""
    rng = np.random.default_rng(0)
    offers = [offer(4, [0, *rng.random(3).cumsum()], [0, *rng.random(3).cumsum()]) for _ in range(3)]
    for price in (0.3, 1.0, 3.0):
        choice = bought(offers, price)
        worth = sum(o.loss[n] - price * o.saved[n] for o, n in zip(offers, choice, strict=True))
        every = np.array(np.meshgrid(*[range(4)] * 3)).reshape(3, -1).T
        best = min(sum(o.loss[n] - price * o.saved[n] for o, n in zip(offers, c, strict=True)) for c in every)
        assert worth == pytest.approx(best)


def test_a_branch_goes_or_its_groups_become_narrower_never_both():
    inner = offer(3, [0, 1, 2], [0, 1, 2])
    for loss, wanted in ((1.0, [0, 1]), (9.0, [2, 0])):
        branch = Offer([-1], (0, 1), np.array([0.0, loss]), np.array([0.0, 4.0]), branch=True, inside=(0,))
        assert bought([inner, branch], 2.0) == wanted
        assert taken([inner, branch], bought([inner, branch], 2.0)) == ([-1] if wanted[1] else [0, 1])
    assert uniform([inner, branch], 0.6) == [2, 0]


def test_no_more_goes_than_the_limit_needs():
    offers = [offer(11, np.linspace(0, 1, 11) ** 2, np.arange(11.0))]
    choice = reaching(offers, 7.0, lambda c: 11.0 - c[0], "it", priced=True)
    assert choice == [4]


def test_a_recipe_says_1_5x():
    recipe = Recipe(steps=(Prune(target="1.5x"), Quantize(**FLOAT)))
    assert recipe.steps[0].amount == ("latency", 1.5)
    assert tersor.Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_saves_as_much_and_loses_less(seed):
    """All choices tried; a branch that goes takes its groups along."""
    rng = np.random.default_rng(seed)
    offers = []
    for number in range(4):
        counts = (0, 1, 2) if number < 3 else (0, 1, 3, 4)
        loss, saved = (np.concatenate(([0.0], rng.uniform(0.1, 1, len(counts) - 1).cumsum())) for _ in range(2))
        offers.append(Offer(list(range(10 * number, 10 * number + 4)), counts, loss, saved))
    for inside in ((0, 1), (2,)):
        saved = sum(float(offers[k].saved[-1]) for k in inside) + 0.5
        offers.append(Offer([-1 - inside[0]], (0, 1), np.array([0.0, rng.uniform(0.5, 2)]), np.array([0.0, saved]),
                            branch=True, inside=inside))  # fmt: skip

    def of(choice, what):
        return sum(float(getattr(o, what)[o.counts.index(n)]) for o, n in zip(offers, choice, strict=True))

    def apart(choice):
        return all(not n or not any(choice[k] for k in o.inside) for o, n in zip(offers, choice, strict=True))

    wanted = rng.uniform(0.5, 5)
    allowed = [
        choice for choice in itertools.product(*(o.counts for o in offers))
        if apart(choice) and of(choice, "saved") >= wanted - 1e-9
    ]  # fmt: skip
    found = cheapest(offers, wanted)
    assert apart(found)
    assert of(found, "saved") >= wanted - 1e-6
    assert of(found, "loss") == pytest.approx(min(of(choice, "loss") for choice in allowed), abs=1e-6)
