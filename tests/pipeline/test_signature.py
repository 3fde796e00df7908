"""A compressed network is called like its model and returns what that returns: in every engine, and from a folder."""

from collections import namedtuple
from dataclasses import dataclass, replace

import pytest
import torch
from parts import Lambda, distance
from torch import nn
from transformers.utils import ModelOutput

import tersor
from tersor.errors import EngineError, TaskError, TersorError
from tersor.network.capture import capture

Pair = namedtuple("Pair", "scores aux")


@dataclass
class Data:
    scores: torch.Tensor
    nothing: None = None


@dataclass
class Output(ModelOutput):
    scores: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] | None = None
    loss: torch.Tensor | None = None


FORMS = {
    "alone": (lambda y, x: y, lambda o: o),
    "a tuple of one": (lambda y, x: (y,), lambda o: o[0]),
    "a list": (lambda y, x: [y.relu(), y], lambda o: o[1]),
    "a dict": (lambda y, x: {"aux": y.relu(), "scores": y}, lambda o: o["scores"]),
    "nested": (lambda y, x: (None, {"deep": [1, ("text", y)]}, True), lambda o: o[1]["deep"][1][1]),
    "named": (lambda y, x: Pair(y, y + 1), lambda o: o.scores),
    "a dataclass": (lambda y, x: Data(y), lambda o: o.scores),
    "of transformers": (lambda y, x: Output(scores=y, hidden=(x, y)), lambda o: o["scores"]),
    "twice": (lambda y, x: (y, {"again": y}, y.relu()), lambda o: o[1]["again"]),
    "the input": (lambda y, x: {"input": x, "scores": y}, lambda o: o["scores"]),
}


def _task(form):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(12, 16), "b": nn.Linear(16, 8)}
    model = Lambda(lambda m, x: form(m.b(m.a(x).relu()), x), **parts).eval()
    data = [(torch.randn(16, 12, generator=torch.Generator().manual_seed(k)),) for k in range(3)]
    return tersor.Task("formed", model, (data[0][0][:1],), lambda: data), data[0][0]


def shape_of(value):
    """The value with its tensors replaced by their shapes; records of a folder compare as dicts."""
    if isinstance(value, torch.Tensor):
        return list(value.shape)
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, dict):
        return {k: shape_of(getattr(value, k)) for k in value.__dataclass_fields__}
    if hasattr(value, "_asdict"):
        return {k: shape_of(v) for k, v in value._asdict().items()}
    if isinstance(value, dict):
        return {k: shape_of(v) for k, v in value.items()}
    return type(value)(map(shape_of, value)) if isinstance(value, (list, tuple)) else value


@torch.no_grad()
def plain(model, x):
    return model(x)


RUN = ["openvino", "onnxruntime", "torch"]
QUICK = "onnxruntime"
AT_ONCE = ("a dict", "nested", "of transformers", "twice", "the input")


@pytest.mark.parametrize("engine", [e if e == QUICK else pytest.param(e, marks=pytest.mark.slow) for e in RUN])
@pytest.mark.parametrize("name", [n if n in AT_ONCE else pytest.param(n, marks=pytest.mark.slow) for n in FORMS])
def test_results_have_the_models_form(name, engine, tmp_path):
    form, read = FORMS[name]
    task, x = _task(form)
    wanted = plain(task.model, x)
    done = tersor.compress(task, engine=engine, threads=1, report=False, progress=False)
    loaded = tersor.load(done.save(tmp_path / "saved"))
    for network in (done, loaded):
        for found in (network(x), network(x.numpy())):
            assert shape_of(found) == shape_of(wanted)
            assert distance(read(found), read(wanted)) < 0.05
    assert type(done(x)) is type(wanted)
    if name == "the input":
        assert torch.equal(done(x)["input"], x), "what is passed through is not quantized"
    if name == "twice":
        assert torch.equal(done(x)[0], done(x)[1]["again"])


@pytest.mark.slow
def test_evaluate_sees_what_the_model_returns():
    task, x = _task(FORMS["of transformers"][0])
    labels = plain(task.model, x).scores.argmax(-1)
    judged = replace(task, evaluate=lambda predict: (predict(x).scores.argmax(-1) == labels) * 1.0)
    report = tersor.compress(judged, engine="torch", progress=False).report
    assert report.original.metric == 1
    assert report.compressed.agreement == report.compressed.metric


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, ids, mask, scale=1.0):
        return {"out": self.out((self.words(ids) * mask.unsqueeze(-1)).sum(1)) * scale}


@pytest.mark.parametrize("engine", RUN)
@pytest.mark.parametrize("keyword", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_arguments_by_position_and_by_name_and_too_few_or_too_many(engine, keyword, tmp_path):
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 20, (4, 5)), torch.ones(4, 5)
    example = {"mask": mask, "ids": ids} if keyword else (ids, mask)
    task = tersor.Task("two", Two().eval(), example, lambda: [example])
    done = tersor.compress(task, engine=engine, threads=1, report=False, progress=False)
    for network in (done, tersor.load(done.save(tmp_path / "saved"))):
        wanted = network(ids=ids, mask=mask)["out"]
        assert torch.equal(network(mask=mask.numpy(), ids=ids)["out"], wanted)
        assert torch.equal((network(mask, ids=ids) if keyword else network(ids, mask=mask))["out"], wanted)
        for args, kwargs in (((ids,), {}), ((ids, mask, mask), {}), ((), {"ids": ids}), ((ids,), {"masks": mask})):
            with pytest.raises(TaskError, match=r"takes (ids, mask|mask, ids) \(2 tensors\)|is missing|one of the ex"):
                network(*args, **kwargs)
        with pytest.raises(EngineError, match="1 inputs were given, but the network takes 2: "):
            network.runner(ids)


@pytest.mark.slow
def test_an_example_is_not_changed_and_may_ask_for_gradients():
    net = Lambda(lambda m, x: m.a(x.sub_(0.5).div_(0.2)), a=nn.Linear(4, 2)).eval()
    example = torch.rand(1, 4)
    before = example.clone()
    task = tersor.Task("writes", net, (example,), lambda: [(torch.rand(8, 4),)])
    tersor.compress(task, engine="torch", progress=False)
    assert torch.equal(example, before)
    asking = tersor.Task("asks", nn.Linear(4, 2).eval(), (torch.rand(1, 4, requires_grad=True),), task.calibration)
    for engine in RUN:
        assert tersor.compress(asking, engine=engine, report=False, progress=False)(torch.rand(3, 4)).shape == (3, 2)


def test_an_output_without_tensors_names_its_class():
    model = Lambda(lambda m, x: {"state": object(), "out": m.a(x)}, a=nn.Linear(4, 2)).eval()
    with pytest.raises(TersorError, match=r"the value\['state'\] is a object"):
        capture(model, (torch.zeros(1, 4),))
