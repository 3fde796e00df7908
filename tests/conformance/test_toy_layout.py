"""A new layout costs one class and one entry of LAYOUTS: every command, file and reader takes it from there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import tersor
from tersor.checkpoints.layouts import LAYOUTS, Layout
from tersor.checkpoints.read import read_weights
from tersor.cli import app
from tersor.errors import CheckpointError, RecipeError
from tersor.numerics import QTensor, QuantSpec
from tests.checkpoints.tiny_llama import logits, standing_for, tiny_llama

SUFFIXES = ("codes", "scale", "zero_point")


@dataclass(frozen=True)
class Toy:
    """Every part of a QTensor as it is, int8 only, and its spec in the configuration."""

    fused_experts_alike = False

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        if spec.format.name != "int8":
            raise CheckpointError(f"{name} is {spec.format}, toy stores int8: choose it")

    def scale_dtype(self, model_dtype: torch.dtype) -> str:
        return "float32"

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        self.check(name, qtensor.shape, qtensor.spec)
        return {f"{name.removesuffix('weight')}{part}": getattr(qtensor, part) for part in SUFFIXES}

    def config(self, specs: Mapping[str, QuantSpec], *_: Any, **__: Any) -> dict[str, Any]:
        return {"quant_method": "toy", "specs": {name: spec.as_dict() for name, spec in specs.items()}}

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        parts = (tensors[f"{name.removesuffix('weight')}{part}"] for part in SUFFIXES)
        return QTensor(*parts, QuantSpec(**config["specs"][name]))

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        return {f"{n.removesuffix('codes')}weight" for n in names if n.endswith(".codes")}

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config["quant_method"] == "toy"

    def reader_limits(self, specs: Iterable[QuantSpec]) -> list[str]:
        return ["only children read toys"]


@pytest.fixture
def toy(monkeypatch):
    layout: Layout = Toy()
    monkeypatch.setitem(LAYOUTS, "toy", layout)


@pytest.fixture
def source(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "source")
    return model, tmp_path / "source"


def test_a_toy_runs_from_the_recipe_to_the_loaded_model(toy, source, tmp_path):
    model, folder = source
    report = tersor.compress_folder(folder, tmp_path / "out", "int8-weight", layout="toy", progress=False)
    assert "only children read toys" in report.warnings
    weights = dict(read_weights(tmp_path / "out"))
    assert len(weights) == 14
    loaded = tersor.load(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(standing_for(model, weights)))
    assert not torch.allclose(logits(loaded), logits(model), atol=1e-5)


def test_the_command_takes_a_toy(toy, source, tmp_path):
    _, folder = source
    out = tmp_path / "out"
    words = ["compress", str(folder), "--recipe", "int8-weight", "--layout", "toy", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(list(read_weights(out))) == 14


def test_what_a_toy_does_not_hold_is_refused_before_anything_runs(toy, source, tmp_path):
    _, folder = source
    with pytest.raises(RecipeError, match=r"layers\.0.*toy stores int8"):
        tersor.compress_folder(folder, tmp_path / "out", "int4-weight", layout="toy", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_in_no_table_is_refused_with_those_that_are(toy, source, tmp_path):
    _, folder = source
    with pytest.raises(RecipeError, match=r"'toi'.*compressed-tensors.*toy"):
        tersor.compress_folder(folder, tmp_path / "out", "int8-weight", layout="toi", progress=False)
