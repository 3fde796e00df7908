"""The batch has its name in every file: ``batch`` in ONNX, N in the layout of OpenVINO's inputs."""

import openvino as ov
import pytest
import torch
from parts import Lambda
from torch import nn

from tersor.engines import ENGINES
from tersor.network.capture import capture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    model = Lambda(
        lambda m, x, y: (m.conv(x).flatten(1), x.reshape(x.shape[0] * 3, -1) + y.mean(), y), conv=nn.Conv2d(3, 4, 3)
    )
    return capture(model.eval(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)))


def sizes(values):
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_onnx_names_it_in_inputs_and_outputs(network, engine, tmp_path):
    import onnx

    ENGINES[engine].compile(network).save(tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sizes(graph.input) == [["batch", 3, 8, 8], ["batch", 5]]
    assert sizes(graph.output) == [["batch", 144], ["3*batch", 64], ["batch", 5]]


def test_openvino_finds_it_in_the_saved_file(network, tmp_path):
    ENGINES["openvino"].compile(network).save(tmp_path)
    model = ov.Core().read_model(tmp_path / "model.xml")
    assert [ov.layout_helpers.batch_idx(port.node.layout) for port in model.inputs] == [0, 0]
    ov.set_batch(model, 4)
    assert [list(port.shape) for port in (*model.inputs, *model.outputs)] == [
        [4, 3, 8, 8], [4, 5], [4, 144], [12, 64], [4, 5]
    ]  # fmt: skip


def test_a_fixed_batch_has_no_name(tmp_path):
    model = Lambda(lambda m, x: torch.cat([m.layer(row[None]) for row in x]), layer=nn.Linear(2, 2)).eval()
    fixed = capture(model, (torch.zeros(3, 2),))
    assert not fixed.dynamic_batch
    ENGINES["openvino"].compile(fixed).save(tmp_path)
    assert ov.Core().read_model(tmp_path / "model.xml").inputs[0].node.layout.empty
