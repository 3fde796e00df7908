"""Outliers put in on purpose are found, named, and answered by what helps against them."""

import json
import re

import pytest
import scipy.stats
import torch
from torch import nn

import tersor
from tersor.errors import CalibrationError, TaskError

WIDTH = 64


class Mlp(nn.Module):
    def __init__(self, loud=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)
        self.norm.weight.data[3] = loud

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def gaussian(seed=0, rows=16):
    return torch.randn(rows, 12, WIDTH, generator=torch.Generator().manual_seed(seed))


def report(model, *batches, **options):
    example = (torch.zeros(1, *batches[0].shape[1:]),)
    task = tersor.Task("test", model.eval(), example, lambda: [(x,) for x in batches])
    return tersor.outliers(task, progress=False, **options)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH))


def test_a_loud_channel_is_named_and_smoothed():
    up, down = report(Mlp(100.0), gaussian(), gaussian(1)).layers
    assert (up.name, up.outlying, up.advice) == ("up", [3], "smooth")
    assert 75 < up.channel_ratio < 125
    assert up.tensor_db < 26 < 30 < up.smoothed_db
    assert (down.name, down.outlying, down.advice) == ("down", [], "fine")


def test_the_advice_to_smooth_is_true():
    """After the rewrite itself the same layer needs nothing."""
    from tersor.network.capture import capture
    from tersor.network.rewrites.smooth import Smooth
    from tersor.observers import observe

    net, x = Mlp(100.0).eval(), gaussian(rows=32)
    network = capture(net, (x[:2],))
    with torch.no_grad():
        normed = net.norm(x)
    name = next(n for n in network.operators() if n.target == torch.ops.aten.linear.default).args[0].name
    smoothed = Smooth()(network, {name: observe(None, normed, channel_axis=-1)})
    with torch.no_grad():
        net.norm.weight.copy_(smoothed.tensor("norm.weight"))
        net.norm.bias.copy_(smoothed.tensor("norm.bias"))
        net.up.weight.copy_(smoothed.tensor("up.weight"))
    before, after = (report(n, x).layers[0] for n in (Mlp(100.0), net))
    assert after.advice == "fine"
    assert abs(after.tensor_db - before.smoothed_db) < 1


def test_loud_tokens_want_a_scale_each():
    x = gaussian() * torch.where(torch.arange(12) == 5, 100.0, 1.0)[:, None]
    (found,) = report(linear(), x).layers
    assert found.advice == "token"
    assert 50 < found.row_ratio < 250
    assert found.outlying == []
    assert found.smoothed_db < found.tensor_db + 6 < 20 < 35 < found.token_db


def test_a_gaussian_needs_nothing():
    x = gaussian(rows=64)
    (found,) = report(linear(), x).layers
    assert found.advice == "fine"
    assert found.kurtosis == pytest.approx(scipy.stats.kurtosis(x.double().ravel(), fisher=False), rel=1e-3)
    assert found.kurtosis == pytest.approx(3.0, abs=0.1)
    assert found.channel_ratio < 2 > found.row_ratio
    assert found.tensor_db > 38


def test_a_massive_constant_leaves_nothing_to_8_bits():
    """A channel that is always 3,000 carries nothing; its power must not hide that all others are rounded away."""
    x = gaussian()
    x[..., 7] = 3000.0
    (found,) = report(linear(), x).layers
    assert (found.advice, found.worst, found.outlying) == ("float", 7, [7])
    assert max(found.tensor_db, found.smoothed_db, found.token_db) < 20 < 30 < found.int16_db
    assert "fp16" in _text(report(linear(), x))


def test_convolutions_are_read_along_their_own_axis():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 3)
    )
    x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second, head = report(net, x).layers
    assert torch.equal(first.max, x.amax((0, 2, 3)))
    assert torch.equal(first.min, x.amin((0, 2, 3)))
    assert [len(r.max) for r in (first, second, head)] == [4, 8, 96]
    assert (first.smoothed_db, first.token_db) == (None, None)
    assert head.token_db is not None


def test_one_value_read_along_two_axes():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.along, self.across = nn.Linear(7, 2), nn.Conv1d(5, 2, 1)

        def forward(self, x):
            return self.along(x).sum() + self.across(x)

    x = torch.randn(8, 5, 7, generator=torch.Generator().manual_seed(0))
    found = {r.name: r for r in report(Both(), x).layers}
    assert torch.equal(found["along"].max, x.amax((0, 1)))
    assert torch.equal(found["across"].max, x.amax((0, 2)))


def test_so_many_samples_and_no_more():
    loud = gaussian(1) * 1000
    found = report(linear(), gaussian(), loud, samples=10)
    assert found.samples == 10
    assert torch.equal(found.layers[0].max, gaussian()[:10].amax((0, 1)))
    assert report(linear(), gaussian(), loud, samples=20).layers[0].max.max() > 1000


def test_only_the_layers_that_were_asked_for():
    assert [r.name for r in report(Mlp(), gaussian(), layer="u*").layers] == ["up"]
    with pytest.raises(CalibrationError, match="no layer matches 'upp'; nearest: up"):
        report(Mlp(), gaussian(), layer="upp")


def test_what_cannot_be_looked_at():
    with pytest.raises(TaskError, match="no linear layer and no convolution"):
        report(nn.Sequential(nn.ReLU()), gaussian())
    with pytest.raises(CalibrationError, match="samples is 0: it must be at least 1"):
        report(linear(), gaussian(), samples=0)


def test_a_page_of_one_picture_a_layer(tmp_path):
    found = report(Mlp(100.0), gaussian())
    page = found.to_html(tmp_path / "new")
    assert page == tmp_path / "new/outliers.html"
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("<svg ", text)) == len(found.layers) == 2
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<(?:link|img|iframe)", text)
    assert "prefers-color-scheme: dark" in text
    assert text.count("script-src 'sha256-") == text.count("<script>") == 1
    assert re.search("up: max|x| of 64 channels, the median .*, the largest .* in channel 3", text)
    assert found.to_html(tmp_path / "mine.html") == tmp_path / "mine.html"


def test_a_foreign_name_stays_text(tmp_path):
    import dataclasses

    found = report(linear(), gaussian())
    evil = dataclasses.replace(found, task="<script>", layers=(dataclasses.replace(found.layers[0], name="<b>\x1b"),))
    text = evil.to_html(tmp_path).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "\x1b" not in text + _text(evil)
    assert text.count("<script>") == 1


def test_json_has_every_channel():
    found = json.loads(report(Mlp(100.0), gaussian()).to_json())
    assert [layer["name"] for layer in found["layers"]] == ["up", "down"]
    assert found["layers"][0]["outlying"] == [3]
    assert [len(layer["max"]) for layer in found["layers"]] == [WIDTH, 128]


def _text(found):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as caught:
        console.print(found)
    return caught.get()
