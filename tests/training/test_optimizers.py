"""The groups of parameters that a training optimizes."""

from torch import nn

from tersor.training.optimizers import grouped


def test_a_rate_of_zero_keeps_scales_and_none_is_that_of_the_weights():
    named = [("a.weight", nn.Linear(2, 2).weight), ("quantizers.a.log_scale", nn.Linear(1, 1).bias)]
    for asked, expected in ((0.0, 0.0), (None, 0.1), (0.02, 0.02)):
        assert [g["lr"] for g in grouped(named, 0.1, asked, 0.0)] == [0.1, expected]
