"""The service of examples/deploy, called in-process and, as its Dockerfile starts it, over HTTP."""

import contextlib
import http.client
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import EXAMPLES, program, run

import tersor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(saved):
    from fastapi.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(saved("openvino")))
        patch.setenv("BATCH", "8")
        yield TestClient(runpy.run_path(str(EXAMPLES / "service/app.py"))["app"])


@pytest.fixture(scope="module")
def expected(saved):
    network = tersor.load(saved("openvino"))
    return lambda x: network(torch.from_numpy(x)).numpy()


def test_it_is_about_twenty_lines():
    lines = (EXAMPLES / "service/app.py").read_text(encoding="utf8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 26


@pytest.mark.parametrize("count", [1, 8, 21])
def test_outputs_are_those_of_the_runner(client, expected, digits, count):
    answer = client.post("/predict", json=digits(count).tolist())
    assert answer.status_code == 200
    np.testing.assert_allclose(answer.json(), expected(digits(count)), rtol=0, atol=1e-5)


def test_calls_at_once_do_not_mix(client, expected, digits):
    x = digits(64)
    with ThreadPoolExecutor(8) as pool:
        parts = [slice(k, k + 1 + k % 3) for k in range(61)]
        answers = list(pool.map(lambda part: client.post("/predict", json=x[part].tolist()).json(), parts))
    every = expected(x)
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_allclose(answer, every[part], rtol=0, atol=1e-5)


BAD = {
    "another size": "[[[[0, 1], [2, 3]]]]",
    "no sample": "[]",
    "rows of two lengths": "[[[[0, 1], [2]]]]",
    "a word": '[[[["digit"]]]]',
    "no number": "[[[[null]]]]",
    "no list": '{"inputs": 3}',
    "a number that float32 does not hold": f"[[[{json.dumps([[1e99] * 32] * 32)}]]]",
    "a number that no float holds": f"[[[[1{'0' * 400}]]]]",
}


@pytest.mark.parametrize("body", BAD.values(), ids=list(BAD))
def test_inputs_that_do_not_fit_are_refused(client, body):
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"]


def test_the_dockerfile_has_no_fault_that_hadolint_finds():
    run(program("hadolint", str(Path(sys.executable).with_name("hadolint"))), EXAMPLES / "docker/Dockerfile")


def instructions() -> list[tuple[str, str]]:
    lines = (EXAMPLES / "docker/Dockerfile").read_text(encoding="utf8").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


def test_what_the_dockerfile_says_serves(saved, digits, expected, tmp_path):
    """Each instruction is carried out in a folder and a virtual environment of its own; only Docker is not asked."""
    context, image, python = tmp_path / "context", tmp_path / "image", tmp_path / "venv/bin"
    (context / "model").mkdir(parents=True)
    for file in (EXAMPLES / "service/app.py", EXAMPLES / "service/requirements.txt"):
        shutil.copy(file, context)
    for file in saved("openvino").glob("model.*"):
        shutil.copy(file, context / "model")
    run(sys.executable, "-m", "venv", python.parent)
    folder, variables, command = image, {"PATH": str(python)}, []
    for name, value in instructions():
        if name == "WORKDIR":
            folder = image / value.strip("/")
            folder.mkdir(parents=True)
        elif name == "COPY":
            source, target = value.split()
            copy = shutil.copytree if (context / source).is_dir() else shutil.copy
            copy(context / source, folder / target)
        elif name == "RUN":
            run(python / value.split()[0], *value.split()[1:], folder=folder)
        elif name == "ENV":
            key, _, path = value.partition("=")
            variables[key] = str(image / path.strip("/"))
        elif name == "CMD":
            command = json.loads(value)
        else:
            assert name in ("FROM", "USER", "EXPOSE")
    assert not list(python.parent.rglob("site-packages/torch"))
    serves(command, folder, variables, digits(3), expected(digits(3)))


def serves(command: list[str], folder: Path, variables: dict[str, str], x: np.ndarray, expected: np.ndarray) -> None:
    """Start a command on a free port of this machine alone, and ask it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [{"0.0.0.0": "127.0.0.1", "8000": port}.get(word, word) for word in command]
    words[0] = shutil.which(words[0], path=variables["PATH"])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with subprocess.Popen(words, cwd=folder, env={**inherited, **variables}, stderr=subprocess.PIPE) as server:
        try:
            for _ in range(120):
                if listens(port):
                    break
                assert server.poll() is None, server.stderr.read().decode()
                time.sleep(0.5)
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=300)
            connection.request("POST", "/predict", json.dumps(x.tolist()), {"content-type": "application/json"})
            with contextlib.closing(connection):
                np.testing.assert_allclose(json.load(connection.getresponse()), expected, rtol=0, atol=1e-5)
        finally:
            server.terminate()


def listens(port: str) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", int(port))) == 0
