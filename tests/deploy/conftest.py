"""The built-in example, compressed and saved, and its digits: what the programs of examples/deploy are tried on."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from deployed import EXAMPLES
from safetensors.torch import load_file

import tersor
from tersor import demo


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """The folder that ``tersor demo`` writes for an engine, without its report."""

    @cache
    def folder(engine: str) -> Path:
        done = tersor.compress(demo.task(), engine=engine, threads=1, report=False, progress=False)
        return done.save(tmp_path_factory.mktemp("saved") / engine)

    return folder


@pytest.fixture
def clone(saved, tmp_path) -> Callable[[str], Path]:
    """A folder that stands for a clone in which the demo was saved in build/ENGINE."""

    def folder(engine: str) -> Path:
        shutil.copytree(EXAMPLES, tmp_path / "clone/examples/deploy", ignore=shutil.ignore_patterns("node_modules"))
        (tmp_path / "clone/build").mkdir()
        (tmp_path / "clone/build" / engine).symlink_to(saved(engine))
        return tmp_path / "clone"

    return folder


@pytest.fixture(scope="session")
def digits() -> Callable[[int], np.ndarray]:
    """The first held-out digits: float32 [n, 1, 32, 32]."""
    pixels = load_file(demo.HERE / "digits.safetensors")["test"]
    return lambda count: demo.enlarge(pixels[:count]).numpy()
