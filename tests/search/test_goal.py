"""What is asked for, read from what people write."""

import pytest

from tersor.errors import RecipeError, TaskError
from tersor.search.goal import Budget, Goal, seconds_of


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((0.5, None, None), ("at most 0.5 points lost",)), (("0.5%", None, None), ("at most 0.5% lost",)),
     ((None, "1.5x", "2 MB"), ("at least 1.5x as fast", "at most 2.00 MB")),
     ((1, 2, "1MiB"), ("at most 1 points lost", "at least 2.0x as fast", "at most 1.05 MB"))],
)  # fmt: skip
def test_what_was_asked_is_said_again(given, wanted):
    assert Goal.parse(*given).sentences(fraction=True) == wanted


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [((None, None, None), RecipeError, "nothing is asked for"), (("half", None, None), TaskError, "largest drop"),
     ((-1, None, None), TaskError, "largest drop"), ((None, "fast", None), RecipeError, "min_speedup"),
     ((None, 0, None), RecipeError, "min_speedup"), ((None, True, None), RecipeError, "min_speedup"),
     ((None, None, "big"), RecipeError, "max_bytes"), ((None, None, 0), RecipeError, "max_bytes")],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        Goal.parse(*given)


def test_times():
    assert [seconds_of(t) for t in ("90s", "2min", "1.5 h", 45, "45")] == [90, 120, 5400, 45, 45]
    for wrong in ("", "soon", 0, -3, True, "1d", float("inf"), float("nan")):
        with pytest.raises(RecipeError, match="budget"):
            seconds_of(wrong)


def test_a_budget_counts_earlier_runs():
    budget = Budget(100.0, spent=90.0)
    assert budget.allows(5)
    assert not budget.allows(11)
    assert 90 <= budget.used < 91
