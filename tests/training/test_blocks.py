"""Training of a block against its float output: what is trained is what is stored, and it pays off or is undone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec, quantize_tensor
from tersor.numerics.qtensor import quantize
from tersor.numerics.ranges import expand
from tersor.training.language.blocks import BlockBatch, BlockTraining, SolvedPart, TrainableBlock, latent, train_block
from tersor.training.language.whole import CodedPart, ScaledModel, TextBatch, mean_divergence, train_whole

SPECS = [
    QuantSpec("int2", "group:8", symmetric=False),
    QuantSpec("int3", "group:10", symmetric=False, scale_dtype="bfloat16"),  # the last group is partial
    QuantSpec("int4", "channel", scale_dtype="float16"),
    QuantSpec("int2", "tensor", symmetric=False),
]


class Block(nn.Module):
    """A residual block, which returns a tuple as those of some models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.RMSNorm(16), nn.Linear(16, 24), nn.Linear(24, 16, bias=False)

    def forward(self, hidden, gain=1.0):
        return (hidden + gain * self.down(self.up(self.norm(hidden)).relu()),)


def parts_of(block, spec):
    """Each weight rounded to nearest."""
    def part(name):
        weight = block.get_parameter(name).detach().clone()
        return SolvedPart(name, lambda t: t, name, weight, quantize_tensor(weight, spec))

    return [part("up.weight"), part("down.weight")]


def batches(block, count=8, mask=None):
    """Inputs of the block with an error of the blocks before it, and the outputs without."""
    generator = torch.Generator().manual_seed(1)

    def batch():
        clean = torch.randn(2, 12, 16, generator=generator)
        target = block(clean, gain=0.9)[0]
        return BlockBatch(clean + 0.02 * torch.randn(2, 12, 16, generator=generator), (), {"gain": 0.9}, target, mask)

    with torch.no_grad():
        return [batch() for _ in range(count)]


def trained(spec, options, mask=None, seed=0):
    block = Block().eval().requires_grad_(False)
    data, parts = batches(block, mask=mask), parts_of(block, spec)
    return block, parts, data, *train_block(block, parts, data.__getitem__, len(data), options, seed)


FEW = BlockTraining(epochs=6, weight_rate=0.03, scale_rate=0.01)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_trained_is_what_the_codes_give_bit_for_bit(spec):
    block, parts, data, student, found = trained(spec, FEW)
    assert found.kept > 0
    assert found.error < found.start
    codes = student.qtensors()
    assert any(not torch.equal(c.codes, p.start.codes) for c, p in zip(codes, parts, strict=True))
    deployed = Block().eval().requires_grad_(False)
    for part, code in zip(parts, codes, strict=True):
        stored = code.scale.to(getattr(torch, spec.scale_dtype)).float()
        assert torch.equal(stored, code.scale)
        deployed.get_parameter(part.parameter).copy_(code.dequantize())
    for name, value in student.norms().items():
        deployed.get_parameter(name).copy_(value)
    assert set(student.names) == {"norm.weight", "up.bias"}
    for batch in data:
        assert torch.equal(student(batch.hidden, gain=0.9), deployed(batch.hidden, gain=0.9)[0])
    assert torch.equal(block.up.weight, Block().up.weight)  # the block itself is not changed


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_training_starts_at_the_solvers_codes(spec):
    block = Block().eval().requires_grad_(False)
    parts = parts_of(block, spec)
    for code, part in zip(TrainableBlock(block, parts).qtensors(), parts, strict=True):
        assert torch.equal(code.codes, part.start.codes)
        assert torch.allclose(code.scale, part.start.scale, rtol=2**-7)


@given(st.integers(0, 1000), st.sampled_from(SPECS))
@settings(max_examples=20, deadline=None)
def test_a_latent_weight_is_the_nearest_one_near_the_codes(seed, spec):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 20, generator=generator)
    start = quantize_tensor(weight + 0.3 * torch.randn(4, 20, generator=generator), spec)
    found = latent(weight, start).detach()
    assert torch.equal(quantize(found, start.scale, start.zero_point, spec), start.codes)
    scale, zero = (expand(t, weight.shape, spec.block) for t in (start.scale, start.zero_point))
    code = start.codes - zero
    low, high = (code - 0.49).clamp(min=spec.low - zero), (code + 0.49).clamp(max=spec.high - zero)
    assert torch.allclose(found, (weight / scale).clamp(low, high) * scale)


def test_the_same_seed_gives_the_same_codes_and_another_order_others():
    runs = [trained(SPECS[0], FEW, seed=s)[3] for s in (0, 0, 1)]
    codes = [torch.cat([c.scale.flatten() for c in run.qtensors()]) for run in runs]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_a_training_that_makes_it_worse_is_undone():
    _, parts, _, student, found = trained(SPECS[2], replace(FEW, epochs=1, weight_rate=100.0, scale_rate=5.0))
    assert found.kept == 0
    assert found.error == found.start < found.curve[0]
    assert torch.equal(student.qtensors()[0].codes, parts[0].start.codes)


def test_padded_positions_do_not_count():
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    block = Block().eval().requires_grad_(False)
    clean, parts = batches(block, mask=mask), parts_of(block, SPECS[0])
    dirty = [replace(b, target=torch.where(mask[..., None], b.target, 99.0)) for b in clean]
    runs = [train_block(block, parts, data.__getitem__, len(data), FEW, 0)[1] for data in (clean, dirty)]
    assert runs[0] == runs[1]


def test_an_error_that_is_not_finite_stops_the_training():
    block = Block().eval().requires_grad_(False)
    data = [replace(b, target=b.target * float("inf")) for b in batches(block)]
    with pytest.raises(CalibrationError, match="epoch 1"):
        train_block(block, parts_of(block, SPECS[0]), data.__getitem__, len(data), FEW, 0)


def test_a_text_of_one_batch_has_nothing_to_train_on():
    block = Block().eval()
    with pytest.raises(CalibrationError, match="1 batches, of which 1 are held out"):
        train_block(block, parts_of(block, SPECS[0]), batches(block).__getitem__, 1, FEW, 0)


class Model(nn.Module):
    """An embedding, a block and a head."""

    def __init__(self):
        super().__init__()
        self.block = Block()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)

    def forward(self, input_ids):
        return type("Output", (), {"logits": self.head(self.block(self.embed(input_ids))[0])})


@pytest.fixture
def model():
    return Model().eval().requires_grad_(False)


def coded(model, spec):
    parts = parts_of(model.block, spec)
    return [CodedPart(f"block.{p.parameter}", p.part, p.start) for p in parts]


def texts(model, count=8):
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(0, 20, (2, 12), generator=generator) for _ in range(count)]
    return [TextBatch({"input_ids": i}, model(i).logits) for i in ids]


@pytest.mark.parametrize("what", ["scales", "weights"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_trained_end_to_end_is_what_the_codes_give_bit_for_bit(model, spec, what):
    data, parts = texts(model), coded(model, spec)
    names = ["block.norm.weight"]
    options = BlockTraining(end_to_end=what, end_to_end_epochs=3, end_to_end_rate=0.003)
    student, found = train_whole(model, parts, names, data.__getitem__, len(data), options, 0)
    assert found.error < found.start
    for part, code in zip(parts, student.qtensors(), strict=True):
        assert what == "weights" or torch.equal(code.codes, part.qtensor.codes)
        assert not torch.equal(code.scale, part.qtensor.scale)
        model.get_parameter(part.parameter).copy_(code.dequantize())
    assert student.norms().keys() == {"block.norm.weight"}
    model.block.norm.weight.copy_(student.norms()["block.norm.weight"])
    for text in data:
        assert torch.equal(student(text.inputs), model(**text.inputs).logits)


def test_the_divergence_is_that_of_the_definition(model):
    data = texts(model, 2)
    data[1] = replace(data[1], token_mask=torch.arange(24).reshape(2, 12) % 3 > 0)
    student = ScaledModel(model, coded(model, SPECS[0]))
    total = count = 0.0
    for text in data:
        p, q = (t.double().softmax(-1) for t in (text.logits, student(text.inputs)))
        each = (p * (p / q).log()).sum(-1)
        mask = torch.ones(2, 12, dtype=torch.bool) if text.token_mask is None else text.token_mask
        total, count = total + each[mask].sum().item(), count + mask.sum().item()
    assert mean_divergence(student, data) == pytest.approx(total / count, rel=1e-4)
