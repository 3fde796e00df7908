"""The Surgeon by the loss: its matrix against WoodFisher's recursion, its choices against trying all of them."""

import pytest
import torch

from tersor.errors import CalibrationError
from tersor.observers.gram import Gram
from tersor.solvers.fisher import blocks_of, prune_by_fisher


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fisher_of(gradients: torch.Tensor, size: int) -> torch.Tensor:
    return Gram.of(blocks_of(gradients, size)).hessian / 2


def correlated(samples: int, weights: int, seed: int = 0) -> torch.Tensor:
    return drawn(samples, weights, seed=seed) @ (torch.eye(weights) + 0.5 * drawn(weights, weights, seed=seed + 1))


def optimum(w: torch.Tensor, fisher: torch.Tensor, gone: tuple[int, ...]) -> tuple[float, torch.Tensor]:
    """By solving for what stays: ½·δᵀFδ and the weights."""
    kept = [k for k in range(len(w)) if k not in gone]
    best = torch.zeros_like(w)
    if kept:
        best[kept] = torch.linalg.solve(fisher[kept][:, kept], fisher[kept] @ w)
    return float((best - w) @ fisher @ (best - w)) / 2, best


def test_the_matrix_is_that_of_woodfishers_recursion_over_all_samples():
    gradients, size, damping = drawn(40, 13), 5, 1e-3
    inverse = [torch.eye(size, dtype=torch.float64) / damping for _ in range(3)]
    for g in gradients.double():
        for b, part in enumerate(torch.nn.functional.pad(g, (0, 2)).split(size)):
            v = inverse[b] @ part
            inverse[b] = inverse[b] - torch.outer(v, v) / (len(gradients) + part @ v)
    damped = fisher_of(gradients, size).double() + damping * torch.eye(size)
    assert torch.allclose(torch.linalg.inv(damped), torch.stack(inverse), rtol=1e-4, atol=1e-6)


def test_the_matrix_of_two_halves_is_that_of_all():
    gradients = drawn(30, 12)
    parts = [Gram.of(blocks_of(part, 5)) for part in gradients.split(12)]
    merged = parts[0].merged(parts[1]).merged(parts[2]).hessian / 2
    assert torch.allclose(merged, fisher_of(gradients, 5), atol=1e-6)
    assert not torch.allclose(fisher_of(gradients[-1:], 5), merged, atol=0.1), "the last sample alone is not all"


@pytest.mark.parametrize("seed", range(4))
def test_each_that_goes_is_the_best_of_all_and_the_rest_is_their_optimum(seed):
    w, gradients = drawn(1, 8, seed=seed + 50), correlated(100, 8, seed)
    fisher = fisher_of(gradients, 8)
    gone: tuple[int, ...] = ()
    for count in range(1, 6):
        left = [k for k in range(8) if k not in gone]
        gone = min(((*gone, k) for k in left), key=lambda some: optimum(w[0], fisher[0], some)[0])
        found = prune_by_fisher({"fc": w}, {"fc": fisher}, count / 8, damping=0.0)["fc"][0]
        assert torch.allclose(found, optimum(w[0], fisher[0], gone)[1], atol=1e-3), count


def test_blocks_of_one_weight_are_optimal_brain_damage():
    w, gradients = drawn(6, 10), correlated(50, 60)
    found = prune_by_fisher({"fc": w}, {"fc": fisher_of(gradients, 1)}, 0.4, damping=0.0)["fc"]
    saliency = w.flatten().square() * gradients.square().mean(0) / 2
    gone = saliency.argsort()[:24]
    expected = w.flatten().clone()
    expected[gone] = 0
    assert torch.equal(found.flatten(), expected)


def test_one_threshold_holds_for_all_layers_and_a_ragged_block_counts_as_it_is():
    weights = {"a": drawn(3, 7, seed=1), "b": drawn(4, 2, 3, seed=2)}
    fishers = {n: fisher_of(correlated(200, w.numel(), seed=5), 5) for n, w in weights.items()}
    fishers["a"] *= 1e6  # its weights matter: all that can go from b goes
    found = prune_by_fisher(weights, fishers, 0.5)
    assert [w.shape for w in found.values()] == [w.shape for w in weights.values()]
    zeros = {n: int((w == 0).sum()) for n, w in found.items()}
    assert zeros == {"a": 0, "b": 22}
    assert {n: int((w == 0).sum()) for n, w in prune_by_fisher(weights, fishers, 0.0).items()} == {"a": 0, "b": 0}


def test_what_is_zero_stays_zero_and_is_counted():
    w, fisher = drawn(1, 20), fisher_of(correlated(200, 20), 10)
    first = prune_by_fisher({"fc": w}, {"fc": fisher}, 0.5)["fc"]
    again = prune_by_fisher({"fc": first}, {"fc": fisher}, 0.5)["fc"]
    assert torch.allclose(again, first, atol=1e-5)
    assert int((again == 0).sum()) == 10
    more = prune_by_fisher({"fc": first}, {"fc": fisher}, 0.7)["fc"]
    assert ((more == 0) >= (first == 0)).all()
    assert int((more == 0).sum()) == 14


def test_weights_without_gradients_go_first_and_nothing_breaks():
    gradients = correlated(5, 20)  # fewer samples than weights in a block
    gradients[:, 3] = 0
    found = prune_by_fisher({"fc": drawn(1, 20)}, {"fc": fisher_of(gradients, 10)}, 0.3)["fc"]
    assert found.isfinite().all()
    assert found[0, 3] == 0


def test_bad_input():
    w = drawn(2, 10)
    with pytest.raises(CalibrationError, match="layer fc: a Fisher matrix of shape"):
        prune_by_fisher({"fc": w}, {"fc": torch.eye(10)[None]}, 0.5)
    with pytest.raises(CalibrationError, match=r"layer fc: .*was the loss NaN"):
        prune_by_fisher({"fc": w}, {"fc": torch.full((2, 10, 10), torch.nan)}, 0.5)
    assert prune_by_fisher({}, {}, 0.5) == {}
