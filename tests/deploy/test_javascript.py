"""The page in headless Chromium, by WebAssembly on one thread, against native ONNX Runtime."""

import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
import pytest
import torch
from deployed import EXAMPLES, node_modules, program, run
from torch import nn

import tersor

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=60000 --dump-dom"
)
# What docs/*/how-to/deploy-javascript.md states; 0 was measured.
BOUND = 1e-3


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def browser(tmp_path):
    """What the page of the example shows for a model and some inputs."""
    chromium, packages = program("chromium", "chromium-browser", "google-chrome"), node_modules()
    site = tmp_path / "site"
    shutil.copytree(EXAMPLES / "javascript", site, ignore=shutil.ignore_patterns("node_modules"))
    (site / "node_modules").symlink_to(packages)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def show(model, x):
        shutil.copy(model, site / "model.onnx")
        x.tofile(site / "inputs.f32")
        address = f"http://127.0.0.1:{server.server_address[1]}/index.html"
        dom = run(chromium, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", address)
        (text,) = re.findall("<output>(.*?)</output>", dom)
        return np.array(text.split(), np.float32)

    yield show
    server.shutdown()
    server.server_close()


def native(model, x):
    session = onnxruntime.InferenceSession(str(model))
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_outputs_are_those_of_the_native_runtime(browser, saved, digits):
    model, x = saved("onnxruntime") / "model.onnx", digits(100)
    expected = native(model, x)
    found = browser(model, x).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_products_do_not_saturate(browser, tmp_path):
    """Sums of 255·127, which CPUs without VNNI would add in 16 bits."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    x = torch.ones(8, 1, 8, 8)
    task = tersor.Task("large sums", model, (x[:1],), lambda: [(x,)])
    done = tersor.compress(task, engine="onnxruntime", target="x86-vnni", report=False, progress=False)
    assert [row.precision for row in done.runner.executed() if "linear" in str(row.nodes)] == ["int8"]
    done.save(tmp_path / "saved")
    with torch.no_grad():
        expected = model(x).numpy()
    found = browser(tmp_path / "saved/model.onnx", x.numpy()).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_the_same_code_runs_in_node(saved, digits, tmp_path):
    node, packages = program("node"), node_modules()
    site, x = tmp_path / "site", digits(5)
    shutil.copytree(EXAMPLES / "javascript", site, ignore=shutil.ignore_patterns("node_modules"))
    (site / "node_modules").symlink_to(packages)
    x.tofile(site / "inputs.f32")
    model = saved("onnxruntime") / "model.onnx"
    (site / "check.mjs").write_text(
        'import { readFileSync } from "node:fs";\nimport { load } from "./network.mjs";\n'
        f'const run = await load(readFileSync("{model}"));\n'
        'const bytes = new Uint8Array(readFileSync("inputs.f32"));\n'
        'console.log((await run(new Float32Array(bytes.buffer))).join(" "));\n'
    )
    expected = native(model, x)
    found = np.array(run(node, "check.mjs", folder=site).split(), np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)
