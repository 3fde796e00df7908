"""A refusal blames what is wrong: the model's tensors, TorchScript, the example."""

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import CaptureError
from tersor.network.capture import capture
from tersor.pipeline.graph.calibration import calibrated

NAN, INF = float("nan"), float("inf")


def block():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def damaged(name, value):
    model = block()
    with torch.no_grad():
        dict([*model.named_parameters(), *model.named_buffers()])[name].view(-1)[1] = value
    return model


class Masked(nn.Module):
    """Attention over earlier positions, its mask a buffer."""

    def __init__(self, hidden=-INF):
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((5, 5), hidden).triu(1), persistent=False)

    def forward(self, x):
        h = self.project(x)
        return (h @ h.transpose(1, 2) + self.mask).softmax(-1) @ h


def unread():
    raise AssertionError("calibration data was read")


EXAMPLE = (torch.zeros(1, 3, 8, 8),)
CALLS = {
    "compress": lambda task: tersor.compress(task, engine="torch", report=False, progress=False),
    "auto": lambda task: tersor.compress(task, engine="auto", report=False, progress=False),
    "prepare": lambda task: tersor.prepare(task.model, "int8-static", task.example, engine="torch"),
    "calibrate": lambda task: calibrated(task, engine="torch"),
    "outliers": lambda task: tersor.outliers(task, progress=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_names_the_damaged_tensor_before_it_reads_data(call):
    task = tersor.Task("t", damaged("1.running_mean", NAN), EXAMPLE, unread)
    with pytest.raises(CaptureError, match=r"BatchNorm statistic 1\.running_mean holds 1 NaN .* of 4 .*not the\s+data"):
        CALLS[call](task)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("1.running_var", INF, "0 NaN and 1 infinite of 4"),
        ("1.running_var", -2.0, "variance of -2"),
        ("1.weight", NAN, "parameter 1.weight"),
        ("3.bias", -INF, "parameter 3.bias holds 0 NaN and 1 infinite of 2"),
        ("0.weight", INF, "parameter 0.weight holds 0 NaN and 1 infinite of 108"),
    ],
)
def test_no_tensor_of_the_model_may_be_damaged(name, value, said):
    with pytest.raises(CaptureError, match=f"(?s)(?=.*{name})(?=.*{said})(?=.*the model is damaged)"):
        capture(damaged(name, value), EXAMPLE)


def test_a_mask_may_be_infinite_and_a_hole_in_it_may_not():
    example = (torch.zeros(1, 5, 8),)
    assert capture(Masked().eval(), example)(torch.ones(2, 5, 8)).isfinite().all()
    with pytest.raises(CaptureError, match="buffer mask holds 10 NaN"):
        capture(Masked(NAN).eval(), example)


class Partly(nn.Module):
    """A part of it was scripted."""

    def __init__(self):
        super().__init__()
        self.inner = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval())

    def forward(self, x):
        return self.inner(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: torch.jit.script(block()), "the model is a TorchScript module"),
        (lambda: torch.jit.trace(block(), EXAMPLE), "the model is a TorchScript module"),
        (lambda: torch.jit.freeze(torch.jit.script(block())), "the model is a TorchScript module"),
    ],
    ids=["scripted", "traced", "frozen"],
)
def test_torchscript_is_named_and_its_code_is_not_judged(make, named):
    with pytest.raises(CaptureError, match=named) as caught:
        capture(make(), EXAMPLE)
    assert "Python `if`" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_is_named():
    with pytest.raises(CaptureError, match="whose part inner is a TorchScript module") as caught:
        capture(Partly().eval(), (torch.zeros(1, 4),))
    assert "Python `if`" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "shape", "said"),
    [
        (lambda: nn.Linear(4, 2), (4,), r"input of shape \(4,\)"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), (4,), r"input of shape \(4,\)"),
        (lambda: nn.Conv2d(3, 8, 3), (3, 8, 8), r"takes input of shape \(1, 3, 8, 8\)"),
        (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), (3, 9), r"takes input of shape \(1, 3, 9\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 2)), (3, 8, 8), r"takes .* \(1, 3"),
        (lambda: nn.Sigmoid(), (), r"input of shape \(\)"),
    ],
)
def test_an_example_without_a_batch_dimension_is_named(make, shape, said):
    with pytest.raises(CaptureError, match=f"Task.example has no batch dimension: .*{said}"):
        capture(make().eval(), (torch.zeros(shape),))


def test_an_example_that_the_model_cannot_run_is_named():
    norm = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False)).eval()
    for model, shape in ((norm, (1, 4)), (nn.Linear(4, 2).eval(), (1, 5))):
        with pytest.raises(CaptureError, match="the model itself cannot run Task") as caught:
            capture(model, {"input": torch.zeros(shape)})
        assert f"input of shape {shape}" in str(caught.value)
        assert "torch.export" not in str(caught.value)


def test_the_example_stays_as_it_was_and_so_do_random_numbers():
    class Writes(nn.Module):
        def forward(self, x):
            return x.sub_(0.5) + torch.rand(1)

    example = torch.zeros(1, 4)
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    capture(Writes().eval(), (example,))
    assert torch.equal(torch.rand(1), wanted)
    assert not example.any()


class Chooses(nn.Module):
    def forward(self, x):
        print("called", file=__import__("sys").stderr)
        return x * 2 if x.mean().item() > 0 else x


def test_a_failed_export_prints_no_graph(capsys):
    with pytest.raises(CaptureError, match="item"):
        capture(Chooses().eval(), (torch.zeros(1, 2),))
    said = capsys.readouterr()
    assert "def forward" not in said.err + said.out
    assert "called" in said.err  # what the model prints is the user's


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("take", [tersor.quantize_dynamic, tersor.dynamic_plan])
def test_modules_that_torchscript_made_are_not_replaced(take):
    with pytest.raises(CaptureError, match="the model is a TorchScript module"):
        take(torch.jit.trace(block(), EXAMPLE))
