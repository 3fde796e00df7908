"""Every entry of LOSSES keeps the same promises, and computes the formula of its paper."""

import copy
import itertools
import math
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
import yaml
from torch import Tensor

from tersor.errors import RecipeError, TaskError
from tersor.tables import checked, made, options_of
from tersor.training.losses import LOSSES, FeatureLoss, Loss, OutputLoss, Outputs, floats

BATCH, CLASSES = 5, 4
# A feature is a picture, a sequence or a map of attention: the first that the loss takes.
SHAPES = {"features": [(BATCH, 3, 4, 2), (BATCH, 4, 6)], "attention": [(BATCH, 2, 3, 4)]}


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


@pytest.fixture
def loss(name):
    return made(LOSSES, name, "loss")


def shape_of(loss) -> tuple[int, ...]:
    if isinstance(loss, OutputLoss):
        return BATCH, CLASSES
    return next(shape for shape in SHAPES[loss.reads] if not loss.refusal(shape, shape))


def drawn(loss, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """What a network could compute for this loss."""
    values = torch.randn(shape_of(loss), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values.softmax(-1) if getattr(loss, "reads", "") == "attention" else values).to(dtype)


def given(loss, *values: Tensor) -> Outputs:
    """The same as the argument of a loss."""
    if isinstance(loss, OutputLoss):
        return Outputs(values[0] if len(values) == 1 else values)
    return Outputs(features={str(k): value for k, value in enumerate(values)})


LABELS = torch.tensor([0, 3, 2, 1, 3])


def computed(loss, student: Tensor, teacher: Tensor, target: Tensor = LABELS) -> Tensor:
    return loss(given(loss, student), given(loss, teacher), target)


def test_equal_networks_have_the_smallest_loss_zero(loss):
    x = drawn(loss).requires_grad_()
    value = computed(loss, x, x)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.ndim == 0
    assert value.item() == pytest.approx(0, abs=1e-12)
    if getattr(loss, "reads", "") == "attention":
        gradient = gradient - gradient.mean(-1, keepdim=True)  # probabilities cannot all grow
    assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-9)
    assert all(float(computed(loss, drawn(loss, 1 + k), x)) > 1e-4 for k in range(3))


def test_the_gradient_reaches_the_student_and_never_the_teacher(loss):
    student, teacher = (drawn(loss, seed).requires_grad_() for seed in (0, 1))
    computed(loss, student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert (student.grad != 0).float().mean() > 0.9


def test_the_gradient_is_that_of_finite_differences(loss):
    student, teacher = drawn(loss, 0).requires_grad_(), drawn(loss, 1)
    assert torch.autograd.gradcheck(lambda s: computed(loss, s, teacher), student)


def test_a_step_along_the_gradient_lowers_the_loss(loss):
    student, teacher = drawn(loss, 0).requires_grad_(), drawn(loss, 1)
    value = computed(loss, student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    step = 1e-3 * float(student.detach().norm() / gradient.norm())
    assert computed(loss, student - step * gradient, teacher) < value


def test_the_order_of_the_samples_does_not_matter(loss):
    order = torch.tensor([3, 0, 4, 1, 2])
    student, teacher = drawn(loss, 0), drawn(loss, 1)
    moved = computed(loss, student[order], teacher[order], LABELS[order])
    torch.testing.assert_close(moved, computed(loss, student, teacher))
    assert float(computed(loss, student[order], teacher)) != pytest.approx(float(moved))


def test_several_pairs_are_added(loss):
    students, teachers = ([drawn(loss, k + seed) for k in range(2)] for seed in (0, 2))
    if loss.name == "dkd":
        loss = replace(loss, temperature=1.0)
    both = loss(given(loss, *students), given(loss, *teachers), LABELS)
    torch.testing.assert_close(both, sum(computed(each(loss), s, t) for s, t in zip(students, teachers, strict=True)))


def each(loss):
    """What ``auto`` chooses for two outputs, of which no labels say that they are scores."""
    return loss.chosen([drawn(loss)] * 2, LABELS) if loss.name == "auto" else loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(loss, dtype):
    student, teacher = (drawn(loss, seed, dtype).requires_grad_() for seed in (0, 1))
    value = computed(loss, student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad.dtype == dtype
    exact = computed(loss, student.detach().double(), teacher.detach().double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)


def test_autocast_changes_nothing(loss):
    student, teacher = (drawn(loss, seed, torch.float32) for seed in (0, 1))
    plain = computed(loss, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(computed(loss, student, teacher), plain)
        assert torch.is_autocast_enabled("cpu")


def test_float64_stays(loss):
    assert computed(loss, drawn(loss, 0), drawn(loss, 1)).dtype == torch.float64


def test_other_numbers_of_samples_are_refused_with_both_shapes(loss):
    kind = TaskError if isinstance(loss, OutputLoss) else RecipeError
    ours, theirs = drawn(loss), drawn(loss)[1:]
    with pytest.raises(kind, match=rf"{loss.name}.*student.*\[5, .*teacher.*\[4, "):
        computed(loss, ours, theirs)


def test_an_entry_is_a_frozen_dataclass_of_its_options_under_its_name(name, loss):
    assert isinstance(loss, Loss)
    assert loss.name == name
    assert loss == type(loss)()
    assert pickle.loads(pickle.dumps(loss)) == copy.deepcopy(loss) == loss
    with pytest.raises(FrozenInstanceError):
        loss.weight = 2
    assert "arXiv" in type(loss).__doc__ or name == "auto"


def test_options_are_read_and_written_by_recipes(name, loss):
    options = {f.name: getattr(loss, f.name) for f in fields(loss)}
    named = checked(LOSSES, {name: options}, "loss")
    again = checked(LOSSES, yaml.safe_load(yaml.safe_dump(named)), "loss")
    assert made(LOSSES, again, "loss") == loss
    assert options_of(named) == options
    with pytest.raises(RecipeError, match=f"loss {name}: option 'weight' is -1"):
        checked(LOSSES, {name: {"weight": -1}}, "loss")
    with pytest.raises(RecipeError, match=f"loss {name} has no option wieght=1 .did you mean 'weight'"):
        checked(LOSSES, {name: {"wieght": 1}}, "loss")
    if loss.share:
        with pytest.raises(RecipeError, match="less than or equal to 1"):
            checked(LOSSES, {name: {"weight": 1.5}}, "loss")


@pytest.mark.parametrize("layers", ["layer*", ["a", "b.*"], [["a", "b"], "c"]])
def test_layers_are_an_option_of_all_losses_of_features(name, loss, layers):
    if isinstance(loss, FeatureLoss):
        named = yaml.safe_load(yaml.safe_dump(checked(LOSSES, {name: {"layers": layers}}, "loss")))
        assert named == {name: {"layers": layers}}
        tuples = layers if isinstance(layers, str) else tuple(tuple(x) if isinstance(x, list) else x for x in layers)
        assert made(LOSSES, named, "loss").layers == tuples
        with pytest.raises(RecipeError, match=f"loss {name}: `layers` names no layer"):
            made(LOSSES, {name: {"layers": []}}, "loss")


# The formulas, by loops over float64 numbers.


def rows(x: Tensor) -> list[list[float]]:
    """[batch, width] as lists; pictures with the width last."""
    return (x.movedim(1, -1) if x.ndim > 3 else x).reshape(-1, x.shape[1] if x.ndim > 3 else x.shape[-1]).tolist()


def softmax(scores, temperature):
    powers = [math.exp(score / temperature) for score in scores]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def unit(a):
    return [x / math.sqrt(dot(a, a)) for x in a]


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def logits(s, t):
    return 16 * mean(kl(softmax(b, 4), softmax(a, 4)) for a, b in zip(rows(s), rows(t), strict=True))


def dkd(s, t):
    total = 0.0
    for a, b, label in zip(rows(s), rows(t), LABELS.tolist(), strict=True):
        p, q = softmax(b, 4), softmax(a, 4)
        total += kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = [[x / (1 - y[label]) for k, x in enumerate(y) if k != label] for y in (p, q)]
        total += 8 * kl(*others)
    return 16 * total / len(s)


def mse(s, t):
    return dot(*[minus(s.flatten().tolist(), t.flatten().tolist())] * 2) / dot(*[t.flatten().tolist()] * 2)


def cosine(s, t):
    return mean(1 - dot(unit(a), unit(b)) for a, b in zip(rows(s), rows(t), strict=True))


def squared(s, t):
    return mean(x * x for a, b in zip(rows(s), rows(t), strict=True) for x in minus(a, b))


def attention_transfer(s, t):
    differences = []
    for a, b in zip(s, t, strict=True):
        maps = [unit([dot(v, v) for v in rows(x[None])]) for x in (a, b)]
        differences += minus(*maps)
    return mean(d * d for d in differences) / 2


def similarity(s, t):
    def gram(x):
        flat = x.flatten(1).tolist()
        return [unit([dot(a, b) for b in flat]) for a in flat]

    return sum(d * d for a, b in zip(gram(s), gram(t), strict=True) for d in minus(a, b)) / len(s) ** 2


def relational(s, t):
    n = len(s)
    ordered = [(i, j) for i in range(n) for j in range(n) if i != j]
    triples = [(i, j, k) for i, j in ordered for k in range(n) if k not in (i, j)]

    def distances(x):
        found = [math.sqrt(dot(*[minus(x[i], x[j])] * 2)) for i, j in ordered]
        return [d / mean(found) for d in found]

    def angles(x):
        return [dot(unit(minus(x[i], x[j])), unit(minus(x[k], x[j]))) for i, j, k in triples]

    s, t = (x.flatten(1).tolist() for x in (s, t))
    return 25 * mean(map(huber, minus(distances(s), distances(t)))) + 50 * mean(map(huber, minus(angles(s), angles(t))))


def attention_maps(s, t):
    return mean(kl(b, a) for a, b in zip(s.flatten(0, 2).tolist(), t.flatten(0, 2).tolist(), strict=True))


FORMULAS = {
    "auto": logits,  # for there are labels
    "logits": logits,
    "mse": mse,
    "cosine": cosine,
    "dkd": dkd,
    "hints": squared,
    "attention-transfer": attention_transfer,
    "similarity": similarity,
    "relational": relational,
    "hidden-states": squared,
    "attention-maps": attention_maps,
}


def test_every_loss_has_its_formula_here():
    assert FORMULAS.keys() == LOSSES.keys()


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_is_its_formula(name, loss, seed):
    student, teacher = 2 * drawn(loss, 2 * seed), 2 * drawn(loss, 2 * seed + 1)
    expected = FORMULAS[name](student, teacher)
    assert float(computed(loss, student, teacher)) == pytest.approx(expected, rel=1e-9)
    single = float(computed(loss, student.float(), teacher.float()))
    assert single == pytest.approx(expected, rel=1e-4)


# What options and single losses mean.


def entry(name, **options):
    return made(LOSSES, {name: options}, "loss")


def test_distances_that_are_options_have_their_formulas_too():
    s, t = (drawn(entry("hidden-states"), seed) for seed in (0, 1))
    assert float(computed(entry("hidden-states", distance="cosine"), s, t)) == pytest.approx(cosine(s, t))
    s, t = (drawn(entry("attention-maps"), seed) for seed in (0, 1))
    assert float(computed(entry("attention-maps", distance="mse"), s, t)) == pytest.approx(squared(s, t))
    s, t = (drawn(entry("mse"), seed) for seed in (0, 1))
    assert float(computed(entry("mse", relative=False), s, t)) == pytest.approx(squared(s, t))


def test_the_decoupled_loss_is_hintons_with_the_teachers_own_factor():
    s, t = torch.randn(1, 6).double(), torch.randn(1, 6).double()
    rest = 1 - float(torch.softmax(t / 4, -1)[0, 2])
    same = computed(entry("dkd", beta=rest), s, t, torch.tensor([2]))
    torch.testing.assert_close(same, computed(entry("logits"), s, t))


def test_options_weigh_what_they_name():
    s, t = (drawn(entry("dkd"), seed) for seed in (0, 1))
    target, others = (computed(entry("dkd", alpha=a, beta=1 - a), s, t) for a in (1, 0))
    torch.testing.assert_close(computed(entry("dkd", alpha=2, beta=3), s, t), 2 * target + 3 * others)
    s, t = (drawn(entry("relational"), seed) for seed in (0, 1))
    distance, angle = (computed(entry("relational", distance=d, angle=1 - d), s, t) for d in (1, 0))
    torch.testing.assert_close(computed(entry("relational", distance=2, angle=3), s, t), 2 * distance + 3 * angle)
    for name in ("logits", "auto"):
        s, t = (drawn(entry(name), seed) for seed in (0, 1))
        cold = computed(entry(name, temperature=1), s / 2, t / 2)
        torch.testing.assert_close(computed(entry(name, temperature=2), s, t), 4 * cold)
    s, t = (drawn(entry("attention-transfer"), seed) for seed in (0, 1))
    squares = computed(entry("attention-transfer"), *(x.abs().pow(1.5) for x in (s, t)))
    torch.testing.assert_close(computed(entry("attention-transfer", power=3), s, t), squares)


def test_values_are_no_labels():
    scores = torch.randn(5, 4)
    assert [entry("auto").chosen(scores, labels).name for labels in (LABELS, LABELS.float(), LABELS[:, None])] == [
        "logits", "mse", "mse",
    ]


@pytest.mark.parametrize("name", ["logits", "dkd", "auto", "cosine"])
def test_classes_of_pictures_and_of_sequences_are_found(name):
    loss = entry(name)
    scores = [drawn(loss, seed).reshape(BATCH, CLASSES) for seed in (0, 1)]
    flat = computed(loss, *scores)
    pictures = (x[None].movedim(-1, 1)[..., None] for x in scores)  # [1, classes, 5, 1]
    torch.testing.assert_close(computed(loss, *pictures, LABELS[None, :, None]), flat)
    torch.testing.assert_close(computed(loss, *(x[None] for x in scores), LABELS[None]), flat)


@pytest.mark.parametrize("label", [-1, 4, 100])
def test_a_label_out_of_range_is_named_with_the_number_of_classes(label):
    labels = LABELS.clone()
    labels[2] = label
    s = drawn(entry("dkd"))
    with pytest.raises(TaskError, match=rf"the label {label} is out of range: the networks have 4 classes, 0 to 3"):
        computed(entry("dkd"), s, s, labels)


@pytest.mark.parametrize("labels", [None, LABELS.float(), LABELS[:3], LABELS[:, None]])
def test_labels_that_do_not_fit_are_refused(labels):
    s = drawn(entry("dkd"))
    with pytest.raises(TaskError, match=r"dkd needs labels, integers \[5\], .* given .*: yield \(inputs, labels\)"):
        computed(entry("dkd"), s, s, labels)


@pytest.mark.parametrize("name", ["logits", "dkd"])
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_one_value_for_each_sample_is_no_distribution(name, shape):
    with pytest.raises(TaskError, match=rf"{name}: an output \[5.*\] has one value for each sample.*use mse"):
        computed(entry(name), torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("name", ["auto", "mse", "cosine"])
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_one_value_for_each_sample_is_compared_as_a_value(name, shape):
    x = torch.tensor([1.0, 2, 3, 4, 5]).reshape(shape)
    signs = torch.tensor([1, 1, -1, 1, 1]).reshape(shape)
    expected = 2 / 5 if name == "cosine" else 4 * 9 / 55
    assert float(computed(entry(name), signs * x, x, None)) == pytest.approx(expected)


def test_a_teacher_of_zeros_gives_a_finite_relative_loss():
    assert computed(entry("mse"), torch.ones(2, 2), torch.zeros(2, 2)) == 1


def test_outputs_are_logits_or_all_floating_tensors():
    from transformers.modeling_outputs import SequenceClassifierOutput

    logits, other = torch.ones(2, 3), torch.ones(2, 5)
    assert floats(SequenceClassifierOutput(loss=torch.ones(()), logits=logits, hidden_states=(other,)))[0] is logits
    assert [len(t[0]) for t in floats((logits, [other, LABELS], {"more": other, "flag": True}, None))] == [3, 5, 5]


def test_outputs_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(TaskError, match=r"the student returns \[2, 3\] and the teacher \[2, 3\], \[2, 5\]"):
        computed(entry("logits"), torch.ones(2, 3), (torch.ones(2, 3), torch.ones(2, 5)))
    with pytest.raises(TaskError, match="mse: the networks return no floating-point tensor"):
        computed(entry("mse"), LABELS, LABELS)


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "why"),
    [
        ("hints", (2, 3, 4, 4), (2, 5, 4, 4), "set `project: true`"),
        ("hints", (2, 3, 4, 4), (2, 3, 16), "of one kind"),
        ("hints", (2, 7, 3), (2, 8, 3), "their lengths differ"),
        ("hidden-states", (2, 7, 3), (2, 7, 4), "set `project: true`"),
        ("hidden-states", (2, 3, 4, 4), (2, 3, 4, 4), "use hints"),
        ("attention-transfer", (2, 3), (2, 3), "without positions"),
        ("attention-transfer", (2, 7, 3), (2, 8, 3), "their lengths differ"),
        ("attention-maps", (2, 3, 4, 4), (2, 2, 4, 4), "set `heads: mean`"),
        ("attention-maps", (2, 3, 4, 5), (2, 3, 4, 4), "equal queries and keys"),
    ],
)
def test_features_that_do_not_fit_are_refused_with_the_layers_and_both_shapes(name, ours, theirs, why):
    s, t = (Outputs(features={"a → b": torch.ones(shape)}) for shape in (ours, theirs))
    with pytest.raises(RecipeError) as error:
        entry(name)(s, t)
    assert str(error.value).startswith(f"{name}, a → b: the student's {[*ours]} and the teacher's {[*theirs]}: ")
    assert why in str(error.value)


def test_pictures_of_different_sizes_are_averaged_to_the_smaller():
    small, large = torch.rand(2, 3, 2, 4), torch.rand(2, 3, 4, 4)
    averaged = (large[:, :, ::2] + large[:, :, 1::2]) / 2
    for name in ("hints", "attention-transfer"):
        for pair, equal in (((small, large), (small, averaged)), ((large, small), (averaged, small))):
            torch.testing.assert_close(computed(entry(name), *pair), computed(entry(name), *equal))


@pytest.mark.parametrize("name", ["attention-transfer", "similarity", "relational"])
def test_widths_and_scales_of_features_do_not_matter_to_relations(name):
    s, t = torch.rand(5, 3, 4, 4), torch.rand(5, 8, 4, 4)
    value = computed(entry(name), s, t)
    assert value > 0
    torch.testing.assert_close(computed(entry(name), 7 * s, 0.1 * t), value, rtol=1e-3, atol=1e-6)


def test_heads_of_other_numbers_are_compared_by_their_mean():
    s, t = torch.rand(2, 4, 3, 3).softmax(-1), torch.rand(2, 2, 3, 3).softmax(-1)
    both = (x.mean(1, keepdim=True) for x in (s, t))
    value = computed(entry("attention-maps", heads="mean"), s, t)
    torch.testing.assert_close(value, computed(entry("attention-maps"), *both))


def test_masked_keys_have_no_part_in_the_attention_loss():
    s, t = (torch.tensor([[[[*row, 0.0]]]], requires_grad=True) for row in ([0.5, 0.5], [0.25, 0.75]))
    value = computed(entry("attention-maps"), s, t)
    value.backward()
    torch.testing.assert_close(value, computed(entry("attention-maps"), s[..., :2], t[..., :2]))
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("samples", [1, 2])
def test_batches_without_relations_have_none_to_lose(samples):
    s, t = torch.rand(samples, 4).requires_grad_(), torch.rand(samples, 4)
    value = computed(entry("relational"), s, t)
    value.backward()
    assert value == 0
    assert (s.grad == 0).all()


def test_a_common_offset_of_features_costs_no_precision():
    s, t = torch.rand(8, 30), torch.rand(8, 30)
    exact = computed(entry("relational"), s.double(), t.double())
    torch.testing.assert_close(computed(entry("relational"), s + 64, t + 64).double(), exact, rtol=1e-4, atol=0)


def test_rounding_makes_no_angle_between_equal_samples():
    random = torch.Generator().manual_seed(0)
    centres, t = torch.rand(2, 400, generator=random), torch.rand(8, 400, generator=random)
    equal = centres.repeat_interleave(4, 0)
    rounded = equal * (1 + 1e-7 * torch.randn(8, 400, generator=random))
    torch.testing.assert_close(computed(entry("relational"), rounded, t), computed(entry("relational"), equal, t))


def test_equal_samples_have_no_angle_and_a_finite_gradient():
    s = torch.rand(5, 4).double()
    s[3] = s[1]
    t = torch.rand(5, 4).double()
    t[0] = t[2]
    s.requires_grad_()
    value = computed(entry("relational"), s, t)
    value.backward()
    assert s.grad.isfinite().all()
    # The vertex or an end of an angle is never one of two equal samples together with the other.
    exist = [
        (i, j, k)
        for i, j, k in itertools.permutations(range(5), 3)
        if {1, 3} not in ({i, j}, {j, k}) and {0, 2} not in ({i, j}, {j, k})
    ]
    s, t = s.detach(), t.detach()
    cosines = [[dot(unit(x[i] - x[j]), unit(x[k] - x[j])) for i, j, k in exist] for x in (s, t)]
    angle = computed(entry("relational", distance=0, angle=1), s, t)
    assert angle.item() == pytest.approx(mean(huber(float(a - b)) for a, b in zip(*cosines, strict=True)))
    assert computed(entry("relational"), torch.ones(4, 3), torch.ones(4, 3)) == 0
