"""Every form of file that Tersor writes (LAYOUTS, CHECKPOINTS) keeps the same promises: what a reader may rely on."""

import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

from tersor.checkpoints.layouts import LAYOUTS, layout_of
from tersor.checkpoints.read import CHECKPOINTS, read_weights
from tersor.errors import CheckpointError, TersorError
from tersor.numerics import QTensor, QuantSpec, expand
from tests.checkpoints.forms import (
    FORMS,
    INTEGERS,
    OTHERS,
    SHAPES,
    network_of,
    specs,
    weight_of,
    write_all,
)

ROOT = Path(__file__).parents[2]
NAME = "model.layers.0.mlp.up_proj.weight"
LAYER = NAME.removesuffix(".weight")


def values(q: QTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps from the zero point, and for each the scale: what stays if codes are counted from elsewhere."""
    scale, zero_point = (expand(t, q.shape, q.spec.block).expand(q.shape) for t in (q.scale, q.zero_point))
    return q.codes.float() - zero_point, scale


def assert_same(back: QTensor, q: QTensor, what: str) -> None:
    assert back.shape == q.shape, what
    assert all(torch.equal(a, b) for a, b in zip(values(back), values(q), strict=True)), what
    # MatMulNBits counts its codes from 0 and says nothing of their sign.
    if back.spec.format.signed == q.spec.format.signed:
        assert torch.equal(back.codes.float(), q.codes.float()), what
        assert torch.equal(
            expand(back.zero_point, q.shape, back.spec.block).expand(q.shape),
            expand(q.zero_point, q.shape, q.spec.block).expand(q.shape),
        ), what


def looked_up(found: dict[str, QTensor], name: str) -> QTensor | None:
    """Graphs know the operator's name, in which dots are underscores."""
    return found.get(name, found.get(name.removesuffix(".weight").replace(".", "_")))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """By form, the folder, what it holds and what was refused; each form is written once."""
    done = {}

    def written(form):
        if form not in done:
            folder = tmp_path_factory.mktemp("form") / "out"
            done[form] = (folder, *write_all(FORMS[form], folder))
        return done[form]

    return written


def test_every_form_that_can_be_read_is_written_here():
    assert {"layout" if form in LAYOUTS else form.split(",")[0] for form in FORMS} == CHECKPOINTS.keys()


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f == "onnx" else f for f in FORMS])
def test_what_a_file_holds_comes_back_exactly(form, written):
    folder, kept, _ = written(form)
    back = dict(read_weights(folder))
    assert len(back) == len(kept) > 1
    for name, q in kept.items():
        found = looked_up(back, name)
        assert found is not None, name
        assert_same(found, q, f"{name}: {q.spec} {tuple(q.shape)}")


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_does_not_hold_is_refused_by_the_layers_name(form, written):
    """That the name is there is checked while writing; here, that an error says more than the name."""
    _, kept, refused = written(form)
    assert kept.keys() | refused.keys() == FORMS[form].candidates.keys()
    assert refused or form in ("network", "onnx, packed")
    for name, error in refused.items():
        assert ":" in error, f"no remedy for {name}: {error}"


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_make_the_same_bytes(form, written, tmp_path):
    folder, kept, _ = written(form)
    (tmp_path / "again").mkdir()
    FORMS[form].write(kept, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(written, tmp_path):
    """Its hashes are seeded otherwise: an order that came from a set would show."""
    import os

    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "tests.checkpoints.forms", str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=900)
    for form in FORMS:
        assert digests(tmp_path / form) == digests(written(form)[0]), form


@pytest.mark.parametrize("form", FORMS)
def test_reading_unpickles_nothing(form, written, monkeypatch):
    folder, kept, _ = written(form)

    def refused(*_, **__):
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (np, "load")):
        monkeypatch.setattr(owner, name, refused)
    assert len(list(read_weights(folder))) == len(kept)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_was_cut_is_named(form, written, tmp_path):
    folder, *_ = written(form)
    for path in folder.iterdir():
        for other in folder.iterdir():
            content = other.read_bytes()
            (tmp_path / other.name).write_bytes(content[: len(content) // 2] if other == path else content)
        with pytest.raises(TersorError, match=str(tmp_path)):
            list(read_weights(tmp_path))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        list(read_weights(tmp_path))


# The layouts, one weight at a time: every combination of format, granularity, symmetry and shape.


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_holds_a_weight_exactly_or_refuses_it_by_name(name):
    layout, taken = LAYOUTS[name], Counter()
    for k, spec in enumerate(specs(INTEGERS + OTHERS)):
        for shape in SHAPES:
            q = weight_of(spec, shape, seed=k)
            try:
                layout.check(NAME, shape, spec)
            except CheckpointError:
                for call in (partial(layout.check, NAME, shape, spec), partial(layout.encode, NAME, q, torch.float16)):
                    with pytest.raises(CheckpointError, match=NAME):
                        call()
                continue
            tensors, config = layout.encode(NAME, q, torch.float16), layout.config({NAME: spec}, ["lm_head"])
            assert layout_of(config) is layout
            assert layout.stored(["norm.weight", "lm_head.bias", *tensors], config) == {NAME}
            back = layout.decode(NAME, tensors, config)
            assert_same(back, q, f"{spec} {shape}")
            assert back.spec == spec
            taken[spec] += 1
    assert taken


@pytest.mark.parametrize("name", LAYOUTS)
def test_scales_are_quantized_as_they_are_stored(name):
    layout = LAYOUTS[name]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        spec = QuantSpec("int4", "channel", scale_dtype=layout.scale_dtype(dtype))
        q, config = weight_of(spec, (32, 64)), layout.config({NAME: spec}, [])
        assert torch.equal(layout.decode(NAME, layout.encode(NAME, q, dtype), config).scale, q.scale)
    odd = QTensor(q.codes, q.scale + 1e-6, q.zero_point, QuantSpec("int4", "channel"))
    with pytest.raises(CheckpointError, match=f"{NAME}.*scale_dtype='float16'"):
        layout.encode(NAME, odd, torch.float16)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tensor_that_is_missing_or_cut_is_named(name):
    layout, q = LAYOUTS[name], weight_of(QuantSpec("int4", "group:32", scale_dtype="float16"), (64, 64))
    config, tensors = layout.config({NAME: q.spec}, []), layout.encode(NAME, q, torch.float16)
    for missing in [k for k in tensors if not k.endswith("g_idx")]:
        with pytest.raises(CheckpointError, match=missing):
            layout.decode(NAME, {k: t for k, t in tensors.items() if k != missing}, config)
        if not missing.endswith("_shape"):
            cut = tensors | {missing: tensors[missing][:, :-1].contiguous()}
            with pytest.raises(CheckpointError, match=NAME):
                layout.decode(NAME, cut, config)


@pytest.mark.parametrize("name", LAYOUTS)
def test_limits_of_other_readers_are_sentences(name):
    for symmetric in (True, False):
        limits = LAYOUTS[name].reader_limits([QuantSpec("int4", "channel", symmetric)])
        assert all(" " in limit for limit in limits)


# Each ecosystem's own reader.


def by_compressed_tensors(folder, kept):
    tensors = load_file(folder / "model.safetensors")
    config = LAYOUTS["compressed-tensors"].config({name: q.spec for name, q in kept.items()}, [])
    groups = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for name in kept:
        layer = name.removesuffix(".weight")
        scheme = next(g for g in groups if layer in g.targets)
        state = {k.removeprefix(f"{layer}."): t for k, t in tensors.items() if k.startswith(f"{layer}.")}
        if kept[name].spec.symmetric or len(kept[name].codes) > 1:  # it cannot unpack the zero points of a single row
            yield name, compressor.decompress(state, scheme)["weight"].float()


def by_gguf(folder, kept):
    tensors = {t.name: t for t in gguf.GGUFReader(folder / "model.gguf").tensors}
    for name in kept:
        found = tensors[name.replace("model.layers", "blk").replace("mlp.up_proj", "ffn_up")]
        yield name, torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type))


def by_onnx_runtime(folder, kept):
    """Each layer's output for an input that has a single 1, which picks out a column of the weight."""
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    linear = {name: q for name, q in kept.items() if len(q.shape) == 2}
    width = max(q.shape[1] for q in linear.values())
    inputs = [torch.eye(width)[:, : q.shape[1]] if name in linear else torch.zeros(width, q.shape[1], 8, 8)
              for name, q in kept.items()]  # fmt: skip
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    for name, y in zip(kept, session.run(None, feeds), strict=True):
        if name in linear:
            yield name, torch.from_numpy(y[: linear[name].shape[1]].T)


READERS = {
    "compressed-tensors": by_compressed_tensors,
    "gguf": by_gguf,
    "onnx": by_onnx_runtime,
    "onnx, packed": by_onnx_runtime,
}


@pytest.mark.parametrize("form", READERS)
def test_the_ecosystems_own_reader_has_the_same_values(form, written):
    folder, kept, _ = written(form)
    found = dict(READERS[form](folder, kept))
    assert len(found) >= len(kept) - 4
    for name, weight in found.items():
        expected = kept[name].dequantize()
        # compressed-tensors multiplies in the scale's own dtype.
        tolerance = 2**-10 if form == "compressed-tensors" else 1e-6
        torch.testing.assert_close(weight, expected, rtol=tolerance, atol=0, msg=name)


def test_the_simulation_computes_with_the_weights_it_holds(written):
    folder, kept, _ = written("network")
    from tersor.checkpoints.network import read

    inputs = [torch.eye(q.shape[1]) if len(q.shape) == 2 else torch.ones(1, q.shape[1], 8, 8) for q in kept.values()]
    outputs = zip(network_of(kept)(*inputs), read(folder)(*inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in outputs)
