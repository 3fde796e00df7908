"""The step `prune` from a recipe to the result: how much went, what stayed, what it computes, what is refused."""

import re

import pytest
import torch
from torch import nn

import tersor
from tersor.engines import engine
from tersor.errors import RecipeError
from tersor.measure import Report
from tersor.network.groups import macs, parameters
from tersor.pipeline.graph.prepare import captured, prepare
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.progress import Stages
from tersor.recipe import Prune, Quantize, Recipe, Train
from tersor.report.tables.plan import steps_text
from tests.network.groups.nets import made

FLOAT = {"weights": {"format": "fp32"}, "activations": {"format": "fp32"}, "bias_correction": False}


def task_of(name="resnet", batches=4, **options):
    net, example = made(name)
    shape = example[0].shape[1:]

    def draw(seed):
        x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return (nn.functional.avg_pool2d(x, 3, 1, 1) if x.ndim == 4 else x,)

    return tersor.Task(name, net, example, lambda: map(draw, range(batches)), **options)


def run(task, engine="torch", report=False, quantize=FLOAT, **step):
    recipe = Recipe(steps=(Prune(**step), Quantize(**quantize)), name="pruned")
    return tersor.compress(task, recipe, engine, report=report, progress=False, threads=1)


def error(task, done):
    """Of the outputs on data that was not used, over their variance."""
    x = next(iter(task_of(task.name, batches=1).calibration()))[0].flip(0) * 0.9
    with torch.no_grad():
        out = task.model(x)
    return float((done(x) - out).square().mean() / out.var())


def test_half_of_the_multiplications_go_and_repair_makes_up_for_it():
    task = task_of()
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    errors = {}
    for repair in ("none", "shift", "ridge"):
        done = run(task, target="2x macs", repair=repair, rounds=1)
        (record,) = done.prunings
        assert record.macs[1] <= record.macs[0] / 2
        assert record.macs == (macs(captured(task)), macs(done.network))
        assert record.parameters[1] < record.parameters[0] == parameters(captured(task))
        errors[repair] = error(task, done)
    assert errors["ridge"] < 0.5 * errors["none"]
    assert errors["shift"] < errors["none"]
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def test_obs_is_better_than_chance():
    task = task_of()
    found = {score: error(task, run(task, target="1.6x macs", score=score, rounds=1)) for score in ("obs", "random")}
    assert found["obs"] < 0.7 * found["random"]


@pytest.mark.parametrize("score", ["magnitude", "fisher", "taylor", "batchnorm", "wanda", "geometric-median", "apoz"])
def test_every_score_reaches_the_target(score):
    done = run(task_of(), target="1.5x parameters", score=score, rounds=2)
    (record,) = done.prunings
    assert record.parameters[0] / 1.9 < record.parameters[1] <= record.parameters[0] / 1.5


def test_a_share_of_the_channels_goes_in_parts():
    done = run(task_of(), target="50% channels", score="obs", rounds=3)
    for width in done.prunings[0].widths:
        assert abs(width.after - width.before / 2) <= 1


def test_widths_are_multiples_and_nothing_loses_more_than_most():
    done = run(task_of(), target="1.5x macs", multiple=4, most=0.5)
    widths = done.prunings[0].widths
    assert any(w.after < w.before for w in widths)
    for width in widths:
        assert width.after == width.before or width.after % 4 == 0
        assert width.after >= width.before / 2


def test_layers_and_keep_say_where():
    done = run(task_of(), target="1.1x macs", layers="0.1.body.*")
    narrower = [w.layers for w in done.prunings[0].widths if w.after < w.before]
    assert narrower
    assert all(layer.startswith("0.1.body") for layers in narrower for layer in layers)
    kept = run(task_of(), target="1.1x macs", keep=["0.1.*", "0.0.*"])
    assert all(not layer.startswith(("0.1.", "0.0.")) for w in kept.prunings[0].widths for layer in w.layers)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"layers": "3"}, "3 cannot lose outputs: they are the network's output; leave '3' out of `layers`"),
        ({"layers": "0.9.*"}, "no layer is called '0.9.*'"),
        ({"target": "1000x macs", "rounds": 1}, "multiply-accumulates cannot fall to"),
        ({"target": "1.9x macs", "layers": "0.1.body.0.0", "rounds": 1}, "cannot fall to .*with all gone that may go"),
        ({"keep": "*"}, "nothing of this network can go"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_measured(step, words):
    with pytest.raises(RecipeError, match=words):
        run(task_of(), **step)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "half"}, "the target 'half' is none of `2x macs`"),
        ({"target": "1x macs"}, "makes nothing smaller"),
        ({"target": "100% channels"}, "no share between 0% and 100%"),
        ({"score": "obd"}, "did you mean 'obs'"),
        ({"score": {"magnitude": {"norm": 3}}}, "norm"),
        ({"repair": "ridg"}, "did you mean 'ridge'"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"most": 1.0}, "less than 1"),
    ],
)
def test_a_step_that_says_nothing_sensible_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Prune(**options)


def test_it_edits_the_float_network_so_it_comes_before_quantize():
    with pytest.raises(ValueError, match="`prune` edits the float model, so it cannot stand behind `quantize`"):
        Recipe(steps=(Quantize(), Prune()))


def test_a_score_of_weights_without_repair_reads_no_data():
    def unread():
        raise AssertionError

    task = tersor.Task("bare", *made("resnet"), unread)
    subject = start(task, Recipe(), GraphHost(engine("torch").policy()), Stages(False))
    subject = Prune(target="30% channels", score="magnitude", repair="none")(subject, task, Stages(False))
    assert subject.prunings[0].macs[1] < 0.7 * subject.prunings[0].macs[0]


@pytest.mark.parametrize("name", ["crnn", "qkv", "grouped-queries", "unet", "yolo", "espcn", "densenet", "wavenet"])
def test_other_networks(name):
    task = task_of(name)
    done = run(task, target="1.3x macs", rounds=2)
    assert done.prunings[0].macs[1] <= done.prunings[0].macs[0] / 1.3
    x = next(iter(task.calibration()))[0]
    with torch.no_grad():
        out = task.model(x)
    for a, b in zip(*([v] if isinstance(v, torch.Tensor) else v for v in (done(x), out)), strict=True):
        assert a.shape == b.shape


def test_groups_that_a_score_cannot_rate_stay_whole_and_say_so():
    done = run(task_of("crnn"), target="1.1x macs", score="batchnorm")
    assert any("BatchNorm" in why for why in done.prunings[0].whole.values())


def test_pruned_then_int8_in_an_engine_saved_and_loaded(tmp_path):
    task = task_of()
    done = run(task, "openvino", target="1.5x macs", quantize={}, report=True)
    (told,) = done.report.prunings
    assert told.macs_after <= told.macs_before / 1.5
    assert {left.layer for left in told.fixed} == {"3"}
    assert Report.model_validate_json(done.report.to_json()).prunings == (told,)
    done.save(tmp_path / "out")
    again = tersor.load(tmp_path / "out")
    x = next(iter(task.calibration()))[0]
    torch.testing.assert_close(again(x), done(x))
    page = (tmp_path / "out/report.html").read_text(encoding="utf8")
    assert 'id="pruning"' in page
    assert "0.1.body.0.0" in page


@pytest.mark.parametrize(("rate", "kept"), [(2e-4, True), (0.3, False)])
def test_training_behind_it_stays_where_it_is_better(rate, kept):
    batches = list(task_of().calibration())
    task = task_of(train=lambda: iter(batches))
    pruned = Prune(target="2x macs", rounds=1, repair="none")
    recipe = Recipe(steps=(pruned, Train(epochs=4, rate=rate, freeze_batchnorm=0.0), Quantize(**FLOAT)))
    done = tersor.finetune(task, recipe, "torch", report=False, progress=False, threads=1)
    (training,) = done.trainings
    assert training.kept == kept == (training.after < training.before)
    assert macs(done.network) == done.prunings[0].macs[1]


def test_the_same_seed_gives_the_same_network():
    one, other = (run(task_of(), target="1.5x macs") for _ in range(2))
    assert [w.after for w in one.prunings[0].widths] == [w.after for w in other.prunings[0].widths]
    for name, tensor in one.network.tensors():
        assert torch.equal(tensor, other.network.tensor(name))


def test_a_recipe_reads_and_writes_it():
    text = "steps:\n- prune: {target: 1.5x macs, score: {magnitude: {norm: 1}}, keep: stem}\n- quantize: int8-static\n"
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.steps[0].keep == ("stem",)


@pytest.mark.parametrize("name", ["qkv", "parted", "chunked", "grouped-queries", "crnn", "resnext"])
def test_what_more_than_layers_read_is_not_rated_by_layers(name):
    """Queries and keys are multiplied, hidden units go around: columns of the layers behind do not tell their worth."""
    done = run(task_of(name), target="1.1x macs", rounds=1)
    (record,) = done.prunings
    read = {"crnn": "lstm", "resnext": "conv2d"}.get(name, "scaled_dot_product_attention|matmul")
    assert any(re.search(f"({read}).* reads them, too", why) for why in record.whole.values()), record.whole
    other = run(task_of(name), target="1.1x macs", rounds=1, score="fisher")
    assert not other.prunings[0].whole


def test_auto_prunes_once_for_all_engines():
    done = run(task_of(), "auto", target="1.5x macs", rounds=1, score="magnitude", quantize={})
    assert done.prunings[0].macs[1] <= done.prunings[0].macs[0] / 1.5


def test_a_plan_says_that_it_is_of_the_network_before_pruning():
    recipe = Recipe(steps=(Prune(target="1.5x macs"), Quantize()))
    prepared = prepare(task_of(), recipe, engine("torch").policy())
    assert any("the network before it" in str(note) for note in prepared.original.notes)
    assert steps_text(recipe) == "steps: prune (1.5x macs, obs) → quantize"


def test_a_loop_of_the_users_own_trains_the_pruned_network():
    recipe = Recipe(steps=(Prune(target="1.5x macs", rounds=1), Quantize()))
    student = tersor.trainable(task_of(), recipe, engine="torch", progress=False)
    (x,) = next(iter(task_of().calibration()))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    student(x).square().mean().backward()
    optimizer.step()
    done = tersor.compress(student, report=False, progress=False)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in task_of().model.parameters())
    assert done(x).shape == (16, 5)


def test_a_network_that_returns_no_floats_has_no_gradients():
    class Labels(nn.Sequential):
        def forward(self, x):
            return super().forward(x).argmax(1)

    net, example = made("resnet")
    task = tersor.Task("labels", Labels(net).eval(), example, task_of().calibration)
    with pytest.raises(RecipeError, match="no floating-point values that its weights decide"):
        run(task)
