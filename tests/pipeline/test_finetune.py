"""``finetune``, ``trainable`` and ``compress(student)``: errors before long work, and nothing lost of the caller's."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from training.tiny_tasks import Stopped, entropy, finetune, pairs, recipe, same, tensors_of, tiny_net, tiny_task

import tersor
from tersor.errors import CheckpointError, RecipeError, TaskError, TersorError
from tersor.pipeline.graph import prepare, quantize


@pytest.fixture
def no_capture(monkeypatch):
    """Fails if a network is captured, which is the first long work."""

    def capture(*_):
        raise AssertionError("the network was captured")

    monkeypatch.setattr(prepare, "captured", capture)
    monkeypatch.setattr(quantize, "captured", capture)


def spoiled():
    """A network with a weight that is not a number."""
    net = tiny_net(1)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = float("nan")
    return net


EARLY = {
    "the task has no training data": ({"train": None}, {}),
    "there is nothing to learn": ({"loss": None}, {}),
    "train.. yielded no batch": ({"train": lambda: []}, {}),
    "validation.. yielded no batch": ({"validation": lambda: []}, {}),
    "Target 4 is out of bounds.*line": (
        {"loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1] * 0 + 4)}, {}
    ),
    "returned a float": ({"loss": lambda m, b: entropy(m, b).item()}, {}),
    "call the model that it is given": ({"loss": lambda m, b: entropy(tiny_net(), b)}, {}),
    "without a gradient: .*without no_grad, detach, argmax or item": ({"loss": torch.no_grad()(entropy)}, {}),
    "value without a gradient": ({"loss": lambda m, b: (m(b[0]).argmax(1) != b[1]).float().mean()}, {}),
    r"train.. yielded 2 arguments, .*takes 1, as in .*Task.loss.*`train=lambda: \(\(x,\) for x, label in loader\)`": (
        {"loss": None}, {"distill": "auto"}
    ),
    "train.. yielded a dict.*Task.loss.*for x, label in loader": (
        {"loss": None, "train": lambda: [{"x": b[0], "label": b[1]} for b in pairs()]}, {"distill": "auto"}
    ),
    r"the teacher's 0.weight holds NaN or infinity: give a teacher": ({"teacher": spoiled()}, {"distill": "auto"}),
    r"loss\(model, batch\) raised IndexError.*call it on a batch of validation\(\)": (
        {"validation": lambda: [(x,) for x, _ in pairs()]}, {}
    ),
    r"auto: the student returns \[2, 4\] and the teacher \[2, 5\]": (
        {"teacher": tiny_net(outputs=5)}, {"distill": "auto"}
    ),
    "the teacher raised RuntimeError": ({"teacher": nn.Linear(3, 4)}, {"distill": "auto"}),
}  # fmt: skip


@pytest.mark.parametrize("message", EARLY)
def test_errors_come_before_the_network_is_captured(message, no_capture):
    fields, options = EARLY[message]
    with pytest.raises(TaskError, match=message):
        finetune(tiny_task(**fields), recipe(**options))


def test_a_tracker_that_is_not_there_is_refused_early(no_capture):
    with pytest.raises(TaskError, match="there is no tracker 'notebook'"):
        finetune(tiny_task(), trackers=["notebook"])


def test_one_tracker_may_be_given_by_its_name_alone(no_capture):
    with pytest.raises(TaskError, match="there is no tracker 'notebook'"):
        finetune(tiny_task(), trackers="notebook")


@pytest.mark.parametrize("epochs", [-1, 1.5, "2", True])
def test_a_number_of_epochs_that_is_none_is_refused_early(epochs, no_capture):
    with pytest.raises(RecipeError, match=f"epochs is {epochs!r}: it must be at least 0, a whole number; leave it out"):
        finetune(tiny_task(), epochs=epochs)


def test_activations_that_no_engine_computes_are_refused_before_training():
    reads = []

    def train():
        assert not reads, "training began"
        reads.append("the rehearsal")
        return pairs()

    quantize = {"weights": {"format": "int4"}, "activations": {"format": "int4"}}
    steps = tersor.Recipe.model_validate({"steps": ({"quantize": quantize}, {"train": {"distill": "none"}})})
    with pytest.raises(RecipeError, match=r"openvino.*int4"):
        finetune(tiny_task(train=train), steps, engine="openvino")


def test_hints_between_layers_of_other_shapes_are_projected_or_refused_with_both_shapes():
    steps = recipe(distill={"hints": {"layers": [["4", "4"]], "project": False}}, epochs=1)
    with pytest.raises(RecipeError, match=r"hints.*\[2, 6, 2, 2\].*\[2, 9, 2, 2\].*widths differ"):
        finetune(tiny_task(teacher=tiny_net(width=9)), steps)


class State:
    """What of the caller's state training could change."""

    def __init__(self, net):
        self.net, self.own = net, copy.deepcopy(net.state_dict())
        self.modes = [m.training for m in net.modules()]
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        self.draws = np.random.get_state()[1].copy(), torch.get_rng_state()  # Python's are beartype's, too
        self.globals = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()

    def check(self):
        assert all(torch.equal(self.own[n], t) for n, t in self.net.state_dict().items())
        assert self.modes == [m.training for m in self.net.modules()]
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in self.net.parameters())
        assert (np.random.get_state()[1] == self.draws[0]).all()
        assert torch.equal(torch.get_rng_state(), self.draws[1])
        assert self.globals == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


@pytest.mark.parametrize("stop", [None, Stopped, KeyboardInterrupt])
def test_the_callers_state_is_as_it_was_also_after_an_interruption(stop, tmp_path):
    def loss(model, batch):
        calls.append(1)
        if stop is not None and len(calls) == 12:
            raise stop
        return entropy(model, batch) + 0 * torch.rand(()) * np.random.rand()

    from accelerate.state import AcceleratorState, GradientState, PartialState

    calls, net = [], tiny_net()
    state, task = State(net), tiny_task(net, loss=loss)
    torch.set_default_dtype(torch.float64)
    try:
        with nullcontext() if stop is None else pytest.raises(stop):
            finetune(task, recipe(epochs=1 if stop is None else 4), folder=tmp_path)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    state.check()
    assert not any(s._shared_state for s in (PartialState, AcceleratorState, GradientState))


def test_an_accelerator_of_the_callers_is_as_it_was():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (PartialState, AcceleratorState, GradientState)
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    mine.gradient_state._set_sync_gradients(False)
    before = [dict(s._shared_state) for s in states]
    try:
        done = finetune(tiny_task())
        assert [dict(s._shared_state) for s in states] == before
        assert mine.mixed_precision == "bf16"
    finally:
        for s in states:
            s._shared_state.clear()
    assert same(done, finetune(tiny_task()))


def test_a_training_that_was_stopped_goes_on_in_its_folder_and_refuses_other_recipes(tmp_path):
    def stops(model, batch):
        calls.append(1)
        if len(calls) == 15:
            raise Stopped
        return entropy(model, batch)

    calls, net = [], tiny_net()
    with pytest.raises(Stopped):
        finetune(tiny_task(net, loss=stops), recipe(epochs=2), folder=tmp_path)
    done = finetune(tiny_task(net), recipe(epochs=2), folder=tmp_path)
    assert same(done, finetune(tiny_task(net), recipe(epochs=2)))
    for task, steps, message in (
        (tiny_task(net), recipe(rate=0.1), "`rate` of step 2, train, was 0.001, and is 0.1 now"),
        (tiny_task(net), recipe(quantizers="fixed"), "`quantizers` of step 2, train, was"),
        (tiny_task(tiny_net(1)), recipe(), "the network was"),
    ):
        with pytest.raises(CheckpointError, match=message):
            finetune(task, steps, folder=tmp_path)


def worsening(model, batch):
    """A loss whose gradient leads away from what it measures."""
    loss = entropy(model, batch)
    return loss.detach() * 2 - loss if model.training else loss


def test_what_training_made_worse_is_not_returned():
    task = tiny_task(loss=worsening)
    steps = recipe(optimizer="sgd", rate=0.5, re_estimate=False)
    done = finetune(task, steps)
    (record,) = done.trainings
    assert record is done.subject.trainings[0]
    assert record.after > record.before
    assert not record.kept
    assert same(done, tersor.compress(task, steps.model_copy(update={"steps": steps.steps[:1]}), engine="torch",
                                      report=False, progress=False))


def test_a_loss_that_led_away_from_the_network_is_said():
    done = finetune(tiny_task(loss=lambda model, batch: -model(batch[0]).square().mean()), recipe(rate=0.1))
    (record,) = done.subject.trainings
    assert record.kept
    assert any("led away from the teacher" in note for note in record.notes)


class Tagger(nn.Module):
    """Nearly all weights are those of a recurrent layer and of an embedding, which 8 static bits leave in float."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(50, 16), nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 4)

    def forward(self, words):
        return self.head(self.rnn(self.embed(words))[0][:, -1])


@pytest.mark.slow
def test_recurrent_layers_and_embeddings_that_training_left_in_float_are_named_with_a_remedy():
    torch.manual_seed(0)
    data = [(torch.randint(50, (4, 5)),)]
    task = tersor.Task("tagger", Tagger().eval(), data[0], lambda: data, train=lambda: data)
    found = {}
    for name in ("int8-static", "int8-dynamic"):
        steps = tersor.Recipe(steps=[{"quantize": name}, {"train": {"epochs": 0}}])
        found[name] = finetune(task, steps, report=True, evaluate=False).report
    left = [text for text in found["int8-static"].warnings if "stayed in float" in text]
    assert left == [
        "embed, rnn.lstm stayed in float, with 52.4 kB of weights: train them with `quantize: int8-dynamic` in place "
        "of the recipe's, or by tersor.trainable(model) and tersor.quantize_dynamic"
    ]
    assert sum(x.weight_bytes for x in found["int8-static"].layers if x.op in ("lstm", "embedding")) == 52_352
    assert not any("stayed in float" in text for text in found["int8-dynamic"].warnings)


class Fixed(nn.Module):
    """Its Python loop over the samples is unrolled, so the captured graph takes the example's batch only."""

    def __init__(self):
        super().__init__()
        self.net = tiny_net(norm=False)

    def forward(self, x):
        return torch.cat([self.net(sample[None]) for sample in x])


def test_a_batch_larger_than_the_fixed_one_is_refused():
    net = Fixed().eval()

    def task(rows):
        data = [pairs(1, rows)[0]]
        x = (torch.zeros(2, 3, 6, 6),)
        return tersor.Task("fixed", net, x, lambda: [(pairs()[0][0],)], train=lambda: data, loss=entropy)

    with pytest.raises(TaskError, match=r"fixed batch of 2.*called with 8 samples"):
        finetune(task(8), recipe(distill="auto", epochs=1))
    finetune(task(2), recipe(distill="auto", epochs=1))


def test_all_errors_are_tersors_own():
    for loss in (lambda m, b: m(b[0], b[1]), lambda m: 0):
        with pytest.raises(TersorError):
            finetune(tiny_task(loss=loss))


def test_a_student_may_be_compressed_twice_and_is_left_as_it_was():
    student = tersor.trainable(tiny_task(), recipe(), engine="torch", progress=False)
    before, mode = copy.deepcopy(student.state_dict()), student.training
    one, other = (tersor.compress(student, report=False, progress=False) for _ in range(2))
    assert same(one, other)
    assert student.training == mode
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())
    assert tensors_of(one).keys() == tensors_of(other).keys()


def test_a_student_with_a_weight_that_is_not_finite_is_refused():
    student = tersor.trainable(tiny_task(), recipe(), engine="torch", progress=False)
    with torch.no_grad():
        student.get_parameter("3.weight")[0] = float("nan")
    with pytest.raises(TersorError, match=r"3.*(NaN|finite)"):
        tersor.compress(student, report=False, progress=False)


def test_the_first_process_alone_measures(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    judged = []
    task = tiny_task(evaluate=lambda predict: judged.append(1) or 1.0)
    done = finetune(task, recipe(epochs=0), report=True, progress=True)
    assert done.report is None
    assert judged == []
