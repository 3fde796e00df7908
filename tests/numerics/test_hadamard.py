"""A rotation is orthogonal, Hadamard where it can be, the same for the same seed, and spreads what stands alone."""

import pytest
import torch
from pretended import accelerator

from tersor.errors import NumericsError
from tersor.numerics.hadamard import Rotation

EYE = {n: torch.eye(n, dtype=torch.float64) for n in range(1, 200)}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 12, 20, 24, 28, 40, 44, 52, 64, 96, 172])
def test_it_is_orthogonal(size):
    r = Rotation(size, 3)(EYE[size])
    torch.testing.assert_close(r @ r.T, EYE[size], atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 8, 12, 20, 24, 40, 44, 64, 96])
def test_a_hadamard_rotation_spreads_every_coordinate_evenly(size):
    rotation = Rotation(size, 5)
    assert rotation.kind == "hadamard"
    torch.testing.assert_close(rotation(EYE[size]).abs(), torch.full((size, size), size**-0.5, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 7, 28, 52, 172])
def test_where_no_hadamard_matrix_is_known_any_rotation_serves(size):
    assert Rotation(size).kind == "orthogonal"
    assert Rotation(size)(EYE[size]).abs().max() < 1


def test_the_seed_decides():
    same, other = Rotation(12, 1), Rotation(12, 2)
    assert torch.equal(Rotation(12, 1)(EYE[12]), same(EYE[12]))
    assert not torch.equal(other(EYE[12]), same(EYE[12]))
    assert not torch.equal(Rotation(7, 1)(EYE[7]), Rotation(7, 2)(EYE[7]))


def test_any_dimension_turns_and_the_others_stay():
    x, rotation = torch.randn(3, 20, 5), Rotation(20)
    r = rotation(torch.eye(20))
    torch.testing.assert_close(rotation(x, 1), torch.einsum("abc,bd->adc", x, r))
    assert rotation(x.bfloat16(), 1).dtype == torch.bfloat16
    assert rotation(x[:0], 1).shape == (0, 20, 5)


def test_more_rows_than_are_in_work_at_once(monkeypatch):
    x, rotation = torch.randn(7, 8), Rotation(8)
    whole = rotation(x)
    monkeypatch.setattr("tersor.numerics.hadamard._CHUNK", 24)
    assert torch.equal(rotation(x), whole)


def test_it_refuses_another_size():
    with pytest.raises(NumericsError, match="of size 8 cannot rotate a dimension of size 9"):
        Rotation(8)(torch.zeros(2, 9))
    with pytest.raises(NumericsError, match="cannot have 0 dimensions"):
        Rotation(0)


@pytest.mark.parametrize("size", [8, 24, 7])
def test_an_accelerator_rotates_as_the_cpu_does(size):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    with accelerator() as device:
        found = Rotation(size, seed=1)(x.to(device))
        assert found.device == device
        found = found.cpu()
    assert torch.equal(found, Rotation(size, seed=1)(x))
