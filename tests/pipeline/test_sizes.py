"""Dimensions that vary besides the batch: lengths of sequences and sizes of images, in engines and from folders."""

import pytest
import torch
import torch.nn.functional as F
from parts import Lambda, distance
from torch import nn

import tersor
from tersor.engines import ENGINES
from tersor.errors import CaptureError, EngineError, TaskError

RUN = [n for n, e in ENGINES.items() if n != "tensorrt" and e.version()]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.qkv, self.out, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, ids, mask):
        batch, length = ids.shape
        x = self.words(ids)
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :] > 0)
        x = x + self.out(found.transpose(1, 2).reshape(batch, length, 32))
        return {"tokens": self.head(x), "pooled": (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)}


def text(length, batch=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (batch, length), generator=random), torch.ones(batch, length)


def text_task(**more):
    torch.manual_seed(0)
    free = {"ids": {1: "length"}, "mask": {1: "length"}}
    return tersor.Task("text", Attending().eval(), text(12), lambda: [text(12), text(7, seed=1)], dynamic=free, **more)


def image_task():
    torch.manual_seed(0)

    def forward(m, x):
        y = m.a(x).relu()
        return F.interpolate(m.c(y + m.b(y).relu()), scale_factor=2)

    parts = {"a": nn.Conv2d(3, 16, 3, 2, 1), "b": nn.Conv2d(16, 16, 3, padding=1), "c": nn.Conv2d(16, 4, 1)}
    data = [(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    free = {"0": {2: "height", 3: "width"}}
    return tersor.Task("image", Lambda(forward, **parts).eval(), (data[0][0][:1],), lambda: data, dynamic=free)


def image(height, width):
    return (torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(9)),)


CASES = {
    "text": (text_task, [text(5, 1), text(12), text(30, 3)]),
    "image": (image_task, [image(16, 16), image(20, 28), image(33, 17)]),
}


QUICK = {("image", "onnxruntime")}
EVERY = [(name, engine) for name in CASES for engine in RUN]


@pytest.mark.parametrize(
    ("name", "engine"), [pytest.param(*e, marks=[pytest.mark.slow] * (e not in QUICK)) for e in EVERY]
)
def test_sizes_that_were_not_traced(name, engine, tmp_path):
    make, calls = CASES[name]
    task = make()
    done = tersor.compress(task, engine=engine, threads=1, report=False, progress=False)
    for network in (done, tersor.load(done.save(tmp_path / "saved"))):
        for inputs in calls:
            with torch.no_grad():
                wanted = task.model(*inputs)
            found = network(*inputs)
            for a, b in zip(found.values(), wanted.values()) if isinstance(wanted, dict) else ((found, wanted),):  # noqa: B905
                assert a.shape == b.shape
                assert distance(a, b) < 0.1


@pytest.mark.slow
def test_they_are_named_in_the_onnx_file():
    done = tersor.compress(text_task(), engine="onnxruntime", report=False, progress=False)
    graph = done.runner.model.graph
    names = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert names == {"ids": ["batch", "length"], "mask": ["batch", "length"]}
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == ["batch", "length", 5]
    assert [i["shape"] for i in done.inputs] == [[None, None]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUN)
def test_a_report_of_such_a_network(engine):
    task = text_task(evaluate=lambda predict: float(predict(*text(20))["tokens"].mean()))
    report = tersor.compress(task, engine=engine, threads=1, progress=False).report
    with torch.no_grad():
        assert report.original.metric == pytest.approx(float(task.model(*text(20))["tokens"].mean()), abs=1e-4)


@pytest.mark.parametrize("engine", RUN)
def test_a_call_that_does_not_fit_names_the_input_the_size_and_the_remedy(engine):
    torch.manual_seed(0)
    net = Lambda(lambda m, x: m.b(m.a(x).relu().flatten(1)), a=nn.Conv2d(3, 8, 3), b=nn.Linear(8 * 36, 4)).eval()
    data = [(torch.randn(8, 3, 8, 8),)]
    task = tersor.Task("fixed", net, (data[0][0][:1],), lambda: data)
    done = tersor.compress(task, engine=engine, report=False, progress=False)
    name = done.inputs[0]["name"]
    with pytest.raises(EngineError, match=rf"{name} has the size 9 in dimension 2, the network takes 8: free it with"):
        done(torch.zeros(1, 3, 9, 8))
    with pytest.raises(EngineError, match=rf"{name} has 3 dimensions, the network takes 4"):
        done(torch.zeros(3, 8, 8))
    if engine == "onnxruntime":  # the others convert it
        with pytest.raises(EngineError, match=rf"{name} is torch.float64, the network takes float32: convert it"):
            done(torch.zeros(1, 3, 8, 8, dtype=torch.float64))


FAULTS = {
    "an unknown name": ({"words": {1: "length"}}, "names words, but the example's arguments are ids, mask"),
    "no such dimension": ({"ids": {2: "length"}}, "frees dimension 2 of ids, which has 2 dimensions"),
    "one that the code fixes": ({"ids": {1: "length"}}, "cannot be free|fixes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_dimensions_that_cannot_be_free_are_refused(name):
    free, said = FAULTS[name]
    torch.manual_seed(0)
    task = tersor.Task("text", Attending().eval(), text(12), lambda: [text(12)], dynamic=free)
    with pytest.raises(CaptureError, match=said):
        tersor.compress(task, engine="torch", report=False, progress=False)


@pytest.mark.parametrize("free", [{"ids": 1}, {"ids": {0: "batch"}}, {"ids": {"1": "length"}}, {"ids": {-1: "length"}}])
def test_the_form_is_checked_at_once(free):
    with pytest.raises(TaskError, match=r'Task.dynamic of ids is .*: write \{"ids": \{1: "length"\}\}'):
        tersor.Task("text", Attending().eval(), text(12), lambda: [text(12)], dynamic=free)


def test_an_example_of_one_is_too_small():
    task = tersor.Task("text", Attending().eval(), text(1), lambda: [text(12)], dynamic={"ids": {1: "length"}})
    with pytest.raises(CaptureError, match=r"dimension 1 of ids \(length\) is 1 in the example"):
        tersor.compress(task, engine="torch", report=False, progress=False)


def test_recurrent_layers_say_why_not():
    net = Lambda(lambda m, x: m.out(m.rnn(x)[0]), rnn=nn.GRU(8, 16, batch_first=True), out=nn.Linear(16, 4)).eval()
    x = torch.randn(4, 6, 8)
    task = tersor.Task("rnn", net, (x,), lambda: [(x,)], dynamic={"0": {1: "time"}})
    with pytest.raises(CaptureError, match=r"dimension 1 of 0 \(time\) cannot be free.*as recurrent layers do"):
        tersor.compress(task, "int8-dynamic", "torch", report=False, progress=False)
