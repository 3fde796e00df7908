"""The integer program against all choices, tried one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.solvers.structured.allocation import Pair, allocate

COST = st.integers(-20, 20).map(lambda k: k / 4)
OPTION = st.fixed_dictionaries({"loss": COST, "ms": COST, "bytes": COST})
UNITS = st.lists(st.lists(OPTION, min_size=1, max_size=3), min_size=1, max_size=4)


def total(units, pairs, choice, kind):
    alone = sum(options[k].get(kind, 0.0) for options, k in zip(units, choice, strict=True))
    chosen = set(enumerate(choice))
    return alone + sum(pair.cost.get(kind, 0.0) for pair in pairs if {pair.one, pair.other} <= chosen)


@st.composite
def problems(draw):
    units = draw(UNITS)
    places = [(u, k) for u, options in enumerate(units) for k in range(len(options))]
    apart = [(a, b) for a, b in itertools.combinations(places, 2) if a[0] != b[0]]
    pairs = draw(st.lists(st.sampled_from(apart), max_size=4, unique=True)) if apart else []
    return units, [Pair(a, b, draw(OPTION)) for a, b in pairs], {"ms": draw(COST), "bytes": draw(COST)}


@settings(max_examples=80)
@given(problems())
def test_no_choice_is_better(problem):
    units, pairs, limits = problem
    allowed = [
        choice
        for choice in itertools.product(*(range(len(options)) for options in units))
        if all(total(units, pairs, choice, kind) <= most + 1e-9 for kind, most in limits.items())
    ]
    found = allocate(units, "loss", limits, pairs)
    if not allowed:
        assert found is None
        return
    best = min(total(units, pairs, choice, "loss") for choice in allowed)
    assert tuple(found) in allowed
    assert total(units, pairs, found, "loss") == pytest.approx(best, abs=1e-6)


def test_a_thousand_layers_are_allocated_at_once():
    rng = np.random.default_rng(0)
    units = [[{"ms": ms * bits, "loss": loss * 4.0**-bits} for bits in (2, 3, 4, 8)]
             for ms, loss in rng.uniform(0.1, 1, (1000, 2))]  # fmt: skip
    limit = sum(options[2]["ms"] for options in units)
    found = allocate(units, "loss", {"ms": limit})
    ms, loss = (sum(o[k][kind] for o, k in zip(units, found, strict=True)) for kind in ("ms", "loss"))
    assert ms <= limit * (1 + 1e-9)
    assert loss < sum(options[2]["loss"] for options in units)
