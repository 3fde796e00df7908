"""Recurrent networks at run time: OpenVINO and ONNX Runtime compute what is simulated, and say that it was integers."""

import pytest
import torch
from parts import Lambda, task_of
from torch import nn

import tersor
from tersor.engines.numbers import check_numbers
from tersor.errors import EngineError
from tersor.network.capture import capture
from tersor.network.network import op_name
from tersor.pipeline.graph.audit import audit
from tersor.recipe import Recipe

WIDTH, STEPS = 128, 3
PRODUCTS = ("rnn.input_l0", "rnn.state_l0.1", "rnn.state_l0.2", "head")
ENGINES = ("openvino", "onnxruntime")


def net(kind, width=WIDTH):
    torch.manual_seed(0)
    rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](width, width, batch_first=True)
    return Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=rnn, head=nn.Linear(width, 4)).eval()


def task(kind, width=WIDTH):
    return task_of(net(kind, width), (STEPS, width), batches=1, batch=2)


def compressed(subject, recipe, engine, **options):
    return tersor.compress(subject, recipe, engine, threads=1, progress=False, **{"report": False, **options})


def growing(batch, width=WIDTH):
    """Each step ten times as loud as the one before: one scale for all of them costs more than one for each."""
    x = torch.randn(batch, STEPS, width, generator=torch.Generator().manual_seed(9))
    return x * torch.logspace(0, 2, STEPS)[:, None]


PAIRS = [(k, e) for k in ("lstm", "gru") for e in ENGINES]
PARAMS = [PAIRS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PAIRS[1:])]


@pytest.fixture(scope="module", params=PARAMS, ids="-".join)
def done(request):
    kind, engine = request.param
    subject = task(kind)
    return compressed(subject, "int8-dynamic", engine), capture(subject.model, subject.example)


def test_no_recurrent_operator_is_left_and_every_product_is_planned_in_integers(done):
    done, _ = done
    assert not {"lstm", "gru"} & {op_name(n) for n in done.network.operators()}
    planned = {layer.name: layer.planned for layer in done.plan.layers if layer.op == "linear"}
    assert planned == dict.fromkeys(PRODUCTS, "int8")


@pytest.mark.exact_int8
@pytest.mark.parametrize("batch", [1, 3])
def test_the_engine_computes_what_is_simulated(done, batch):
    done, exact = done
    x = growing(batch)
    assert (done.runner(x) - done.network(x)).abs().max() < 1e-4
    found = check_numbers(done.runner, done.network, exact, (x,))
    assert found.to_simulation < 1e-3 * found.to_float


def test_the_engine_says_so_of_every_product(done):
    done, _ = done
    rows = {r.layer.name: r.executed for r in audit(done.plan, done.runner.executed()) if r.layer.op == "linear"}
    assert rows == dict.fromkeys(PRODUCTS, "int8")


@pytest.mark.exact_int8
def test_one_scale_for_the_whole_tensor_lets_samples_touch_each_other(done):
    """ONNX Runtime's way, and the price of a batch in it; OpenVINO's neighbours are those of one token."""
    done, _ = done
    alone, x = growing(1), growing(3)
    loud = torch.cat([alone, 100 * x[1:]])
    apart = (done.network(loud)[:1] - done.network(alone)).abs().max()
    assert (apart > 1e-2) == (done.engine == "onnxruntime")
    assert torch.allclose(done.runner(loud)[:1], done.network(loud)[:1], atol=1e-4)


def test_the_weight_of_all_steps_is_one_in_the_file(done, tmp_path):
    done, _ = done
    files = done.runner.save(tmp_path)
    weights = sum(t.numel() for _, t in done.network.tensors() if t.dtype == torch.int8)
    assert weights < sum((tmp_path / f).stat().st_size for f in files) < 1.5 * weights


@pytest.mark.slow
def test_the_report_has_a_row_for_every_product(quick_report):
    report = compressed(task("gru"), "int8-dynamic", "openvino", report=True).report
    rows = {r.name: (r.planned, r.executed) for r in report.layers if r.op == "linear"}
    assert rows == dict.fromkeys(PRODUCTS, ("int8", "int8"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # PyTorch's own, of itself
def test_the_report_has_a_row_for_a_layer_that_stays_in_float(quick_report):
    rnn = nn.LSTM(8, 8, proj_size=4, batch_first=True)
    subject = task_of(Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=rnn, head=nn.Linear(4, 4)), (STEPS, 8), batches=1)
    report = compressed(subject, "int8-dynamic", "openvino", report=True).report
    row = next(r for r in report.layers if r.op == "lstm")
    assert (row.name, row.planned, row.executed) == ("rnn.lstm", "fp32", "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_alone_leave_the_products_in_float(engine):
    """Left alone, either would quantize what goes into them."""
    subject = task("gru")
    done, x = compressed(subject, "int8-weight", engine), growing(2)
    names = [op_name(n) for n in done.network.operators()]
    assert names.count("dequantize") == 3
    assert not {"quantize_rows", "quantize_whole"} & set(names)
    assert (done.runner(x) - done.network(x)).abs().max() < 1e-5
    with torch.no_grad():
        assert (done.network(x) - subject.model(x)).abs().max() > 1e-3, "the weights are codes"


@pytest.mark.slow
def test_layers_too_narrow_for_openvino_keep_their_inputs_in_float():
    torch.manual_seed(0)
    subject = task_of(nn.Sequential(nn.Linear(WIDTH - 1, WIDTH), nn.Linear(WIDTH, 4)), (WIDTH - 1,), batches=1)
    done, x = compressed(subject, "int8-dynamic", "openvino"), growing(2, WIDTH - 1)[:, 0]
    narrow, wide = done.plan.layers
    assert (narrow.planned, narrow.weight_format) == ("fp32", "int8")
    assert narrow.reason.endswith("arithmetic stays float; fewer than the 128 inputs that openvino quantizes together")
    assert (wide.planned, wide.weight_format) == ("int8", "int8")
    assert (done.runner(x) - done.network(x)).abs().max() < 1e-5
    assert [op_name(n) for n in done.network.operators()].count("quantize_rows") == 1
    onnx = compressed(subject, "int8-dynamic", "onnxruntime")
    assert {layer.planned for layer in onnx.plan.layers} == {"int8"}


@pytest.mark.exact_int8
def test_a_rule_reaches_the_steps():
    recipe = Recipe.from_yaml(
        "activations: {range: runtime}\nrules:\n  - layer: 'rnn.state_*'\n    activations: {format: fp32}\n"
    )
    done, x = compressed(task("lstm"), recipe, "openvino"), growing(2)
    planned = {layer.name: layer.planned for layer in done.plan.layers if layer.op == "linear"}
    assert planned == {"rnn.input_l0": "int8", "rnn.state_l0.1": "fp32", "rnn.state_l0.2": "fp32", "head": "int8"}
    assert (done.runner(x) - done.network(x)).abs().max() < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "shape"), [(nn.LSTM, (6, 8)), (nn.GRU, (6, 2, 8)), (nn.RNN, (6, 1, 8))])
def test_time_in_the_place_of_the_batch_is_refused_by_name(engine, kind, shape):
    model = Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=kind(8, 8), head=nn.Linear(8, 4)).eval()
    x = torch.randn(shape)
    subject = tersor.Task("time", model, (x,), lambda: [(x,)])
    with pytest.raises(EngineError, match=r"rnn\.\w+ takes the first dimension of an input.* for time"):
        compressed(subject, "int8-dynamic", engine)
    with torch.no_grad():
        assert tersor.quantize_dynamic(model, progress=False)(x).shape == model(x).shape
