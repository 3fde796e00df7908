"""Factors: the best of each rank, for the inputs and outputs that count."""

import pytest
import torch

from tersor.errors import NumericsError
from tersor.solvers.structured.low_rank import factors


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_a_rank_is_half_the_squared_error_and_falls_to_nothing():
    weight = drawn(6, 9)
    found = factors(weight)
    for rank in range(7):
        first, second = found.at(rank)
        assert first.shape == (rank, 9)
        assert second.shape == (6, rank)
        error = (weight - second @ first).double().square().sum() / 2
        torch.testing.assert_close(error, found.loss[rank], rtol=1e-4, atol=1e-6)
    assert (found.loss.diff() <= 0).all()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_for_given_inputs_and_outputs_no_other_factors_are_better(rank):
    weight, x, rows = drawn(6, 9), drawn(400, 9, seed=1) @ drawn(9, 9, seed=2), drawn(6, seed=3).square() + 0.01
    gram = x.T @ x / len(x)

    def error(first, second):
        return float(((x @ (weight - second @ first).T).square() * rows).sum() / len(x) / 2)

    first, second = factors(weight, gram, rows, damping=1e-9).at(rank)
    best = error(first, second)
    assert best < 0.9 * error(*factors(weight).at(rank))
    torch.testing.assert_close(best, float(factors(weight, gram, rows, damping=1e-9).loss[rank]), rtol=1e-3, atol=1e-6)
    # From there, steps of an optimizer in float64 lead nowhere.
    pair = [t.double().requires_grad_() for t in (first, second)]
    optimizer = torch.optim.Adam(pair, lr=1e-3)
    for _step in range(200):
        optimizer.zero_grad()
        loss = ((x.double() @ (weight.double() - pair[1] @ pair[0]).T).square() * rows.double()).sum() / len(x) / 2
        loss.backward()
        optimizer.step()
    assert loss.item() > best * (1 - 1e-4)


def test_inputs_that_never_change_and_rows_that_do_not_matter():
    found = factors(drawn(3, 4), torch.zeros(4, 4), torch.zeros(3))
    torch.testing.assert_close(found.loss, factors(drawn(3, 4)).loss)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(NumericsError, match="NaN or infinite"):
        factors(torch.full((2, 2), torch.nan))
