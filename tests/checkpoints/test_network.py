"""A network written and read back is the same; a file that somebody prepared does nothing."""

import json

import pytest
import torch
from torch import nn

from tersor import Quantization, Recipe, Task, compress
from tersor.checkpoints.network import FILES, read, write
from tersor.errors import SavedFolderError
from tersor.network.capture import capture


@pytest.mark.parametrize("format", ["int8", "int4", "int2", "ternary", "fp8_e4m3"])
def test_round_trip_is_exact(tmp_path, format):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3)).eval()
    data = [(torch.randn(8, 3, 8, 8),)]
    recipe = Recipe(weights=Quantization(format=format), bias_correction=False)
    done = compress(Task("t", model, (data[0][0][:1],), lambda: data), recipe, "torch", report=False, progress=False)
    write(done.network, tmp_path)
    again = read(tmp_path)
    assert torch.equal(again(data[0][0]), done(data[0][0]))
    write(again, tmp_path)
    assert torch.equal(read(tmp_path)(data[0][0]), done(data[0][0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "aten.relu_.default"}, "changes what it reads"),
        ({"target": "aten.from_file.default"}, "not allowed"),
        ({"target": "os.system.default"}, "not allowed"),
        ({"name": "x; import os"}, "name"),
    ],
)
def test_prepared_graphs_are_refused(tmp_path, change, said):
    write(capture(nn.ReLU().eval(), (torch.zeros(1, 2),)), tmp_path)
    graph = json.loads((tmp_path / FILES[0]).read_text())
    next(n for n in graph["nodes"] if n["op"] == "call_function").update(change)
    (tmp_path / FILES[0]).write_text(json.dumps(graph))
    with pytest.raises(SavedFolderError, match=said):
        read(tmp_path)
