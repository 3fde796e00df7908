"""OpenVINO computes what the simulation says, code by code, and says what it computed in."""

import pytest
import torch
from parts import Lambda, conv, head, task_of
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.engines import ENGINES, engine
from tersor.engines.numbers import check_numbers
from tersor.engines.openvino.runner import FILES, OpenVINORunner
from tersor.errors import EngineError
from tersor.network.capture import capture
from tersor.pipeline.graph.audit import audit

SHAPE = (3, 12, 13)
openvino = ENGINES["openvino"]
POOLS = (
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(2, 3, 1, ceil_mode=True),
    nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True),
)


def _done(model, shape=SHAPE):
    return tersor.compress(task_of(model, shape), report=False, progress=False)


def _ends_in_codes(*layers):
    """A network whose output is one quantized value, so that its codes can be compared."""
    torch.manual_seed(0)
    # The last pool makes the value before it an integer one and changes nothing.
    return nn.Sequential(*layers, nn.MaxPool2d(1), nn.Conv2d(8, 8, 1, groups=8, bias=False))


# Made inside the test, from its own seed.
STACKS = {
    "conv": lambda: (nn.Conv2d(3, 8, 3), nn.ReLU()),
    "depthwise": lambda: (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish()),
    "transposed": lambda: (nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU()),
    "silu": lambda: (nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Upsample(scale_factor=2)),
    "max ceil": lambda: (nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "avg ceil": lambda: (nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.AvgPool2d(3, 2, ceil_mode=True)),
}
AT_ONCE = ("depthwise", "max ceil")


@pytest.mark.parametrize("name", [n if n in AT_ONCE else pytest.param(n, marks=pytest.mark.slow) for n in STACKS])
def test_codes_are_those_of_the_simulation(name):
    torch.manual_seed(0)
    done = _done(_ends_in_codes(*STACKS[name]()))
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(9))
    # A depthwise 1x1 layer multiplies each code by one number: a step of its output is a step of a code.
    scale = (done.network(x) - done.runner(x)).abs().amax((0, 2, 3))
    steps = torch.stack([_step(v) for v in done.network(x).transpose(0, 1).flatten(1)])
    assert bool((scale <= 1.01 * steps).all()), "more than one code off"
    assert float(((done.network(x) - done.runner(x)).abs() > 0.5 * steps.reshape(1, -1, 1, 1)).float().mean()) < 1e-3
    assert {e.precision for e in done.runner.executed() if "Conv" in e.op} == {"int8"}


def _step(values: torch.Tensor) -> torch.Tensor:
    levels = values.double().unique()
    gaps = levels.diff()
    return gaps[gaps > 1e-5 * levels.abs().max()].min().float()


@pytest.mark.slow
@pytest.mark.parametrize("reduce", [lambda y: y.amax((2, 3)), lambda y: y.mean((2, 3)), lambda y: -y.amin((2, 3))])
def test_what_reduces_a_map(reduce):
    """A quantizer behind ReduceMax is computed wrongly by OpenVINO, so it stands before."""
    torch.manual_seed(0)
    done = _done(Lambda(lambda m, x: m.h(reduce(F.relu(m.c(x)))), c=nn.Conv2d(3, 8, 3), h=nn.Linear(8, 3)))
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(done.runner(x), done.network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12, 13), (13, 12), (14, 15)])
@pytest.mark.parametrize("pool", POOLS)
def test_pools_that_round_up_keep_their_values(pool, size):
    x = torch.randn(2, 3, *size)
    runner = openvino.compile(capture(pool.eval(), (x[:1],)), threads=1)
    torch.testing.assert_close(runner(x), pool(x))


def test_fp32_is_fp32():
    """Left alone, OpenVINO computes in BF16 where the CPU can: eight bits of mantissa would show here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        exact = model(x)
    runner = openvino.compile(capture(model, (x[:1],)), threads=1)
    torch.testing.assert_close(runner(x), exact, rtol=1e-4, atol=1e-5)
    assert runner.precision == "f32"
    assert {e.precision for e in runner.executed() if e.op == "Convolution"} == {"fp32"}


def test_its_account_names_our_operators():
    """The second operator of a kind that writes in place gets another name when it is exported again."""

    def twice(m, x):
        x = m.a(x)
        for layer in (m.b, m.c):
            y = layer(x)
            y += x
            x = F.relu(y)
        return m.d(x)

    done = _done(Lambda(twice, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), d=nn.Conv2d(8, 8, 1)))
    sums = {layer.node for layer in done.plan.layers if layer.op == "add"}
    assert len(sums) == 2
    assert sums <= {name for row in done.runner.executed() for name in row.nodes}


@pytest.fixture(scope="module")
def done():
    torch.manual_seed(0)
    return _done(nn.Sequential(conv(3, 8), conv(8, 8), head(8)))


def test_saved_files_give_the_same_bits(done, tmp_path):
    assert done.runner.save(tmp_path) == FILES == tuple(sorted(p.name for p in tmp_path.iterdir()))[::-1]
    again = openvino.load(tmp_path, threads=1)
    for batch in (1, 2, 5):
        x = torch.randn(batch, *SHAPE)
        assert torch.equal(again(x), OpenVINORunner(done.runner.model, 1)(x))


def test_weights_are_stored_in_8_bits(done, tmp_path):
    done.runner.save(tmp_path)
    weights = sum(
        s.spec.format.bits // 8 * done.network.tensor(s.group + "_codes").numel() for s in done.plan.weights()
    )
    assert weights < (tmp_path / "model.bin").stat().st_size < 1.5 * weights + 1500


def test_another_shape_or_dtype_is_refused(done):
    with pytest.raises(EngineError, match=r"refuses inputs of shapes \[\(2, 4, 12, 13\)\]"):
        done.runner(torch.zeros(2, 4, 12, 13))


def test_numbers_tell_integers_from_floats(done):
    x = torch.randn(8, *SHAPE)
    network = capture(nn.Sequential(conv(3, 8), conv(8, 8), head(8)).eval(), (x[:1],))
    honest = check_numbers(done.runner, done.network, network, (x,))
    assert honest.to_simulation < honest.to_float
    fallen = check_numbers(ENGINES["torch"].compile(network), done.network, network, (x,))
    assert not fallen.integer


def test_an_unreadable_model_is_named(tmp_path):
    (tmp_path / "model.xml").write_text("<net/>")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(EngineError, match=r"cannot read .*model\.xml"):
        openvino.load(tmp_path)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_is_absent_gives_the_command(name, monkeypatch):
    monkeypatch.setattr(type(ENGINES[name]), "version", lambda self: None)
    with pytest.raises(EngineError, match="not installed") as error:
        engine(name)
    assert ENGINES[name].install in str(error.value)


def test_an_unknown_engine_lists_those_there_are():
    with pytest.raises(EngineError, match=r"no engine 'openvina'; there are openvino, "):
        engine("openvina")


class Plain(nn.Module):
    """A transposed convolution between two others."""

    def __init__(self, up):
        super().__init__()
        torch.manual_seed(0)
        kind = nn.Conv1d if isinstance(up, nn.ConvTranspose1d) else nn.Conv2d
        self.first, self.up, self.last = kind(3, up.in_channels, 3), up, kind(up.out_channels, 2, 1)

    def forward(self, x):
        return self.last(F.relu(self.up(F.relu(self.first(x)))))


@pytest.mark.parametrize(
    ("up", "rule"),
    [
        (lambda: nn.ConvTranspose2d(16, 16, 4, stride=2), None),
        pytest.param(lambda: nn.ConvTranspose1d(16, 16, 4, stride=3), None, marks=pytest.mark.slow),
        (lambda: nn.ConvTranspose1d(16, 16, 6, stride=5), "the stride of its last dimension is above 3"),
        pytest.param(
            lambda: nn.ConvTranspose2d(16, 16, 4, stride=4),
            "the stride of its last dimension is above 3",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: nn.ConvTranspose2d(16, 16, 1, stride=2),
            "its kernel is smaller than its stride",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: nn.ConvTranspose2d(16, 12, 4, stride=2, groups=2),
            "its channels are no multiple of 16",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_transposed_convolution_in_float_names_the_rule(up, rule):
    model = Plain(up())
    done = _done(model, (3, 20) if isinstance(model.up, nn.ConvTranspose1d) else SHAPE)
    row = next(r for r in audit(done.plan, done.runner.executed()) if r.layer.name == "up")
    assert row.layer.planned == "int8"
    said = row.explained("openvino")
    if rule is None:
        assert (row.executed, row.rule) == ("int8", None)
        assert said.startswith("weight of conv_transpose")
    else:
        assert row.executed == "fp32"
        assert said.startswith("OpenVINO: ")
        assert rule in said
