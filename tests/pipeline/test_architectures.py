"""Sixteen architectures of the transformers package, tiny and of random weights, quantized without a word."""

import pytest
import tiny
import torch
from tiny import NETS, build
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.engines import engine
from tersor.network.quantized import Quantized, QuantizedLinear
from tersor.pipeline.graph.prepare import prepare
from tersor.recipe import resolve


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_it_is_taken_as_it_comes(name):
    model, inputs = build(name)
    small = tersor.quantize_dynamic(model)
    assert type(small) is type(model)
    assert any(isinstance(m, Quantized) for m in small.modules())
    linear = [e for e in tersor.dynamic_plan(model) if e.weighted.op == "linear"]
    assert all(e.weights is not None for e in linear), [str(e) for e in linear if e.weights is None]
    with torch.no_grad():
        exact, ours = (m(**inputs)[0] for m in (model, small))
    # In float64: random weights let the activations of some networks vanish.
    assert float((ours - exact).double().norm()) <= 0.1 * float(exact.double().norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_command_line_inspects_it(name):
    file = f"{tiny.__file__}:{name}"
    done = CliRunner().invoke(app, ["inspect", file], catch_exceptions=False, terminal_width=200)
    assert done.exit_code == 0
    model, inputs = build(name)
    network = prepare(tiny.task(name), resolve("int8-static"), engine("openvino").policy()).network
    with torch.no_grad():
        exact, ours = model(**inputs)[0].double(), network(*inputs.values())
    ours = ours if isinstance(ours, torch.Tensor) else ours[0]
    assert float((ours - exact).norm()) <= 1e-5 * float(exact.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_goes_on_working(name):
    model, inputs = build(name)
    small = tersor.quantize_dynamic(model)
    ids = inputs["input_ids"][:1]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert small.generate(ids, **options).shape == model.generate(ids, **options).shape
    assert any(isinstance(m, QuantizedLinear) for m in small.modules())
