"""What all tests share: where the real networks and pictures are, and one thread for each worker."""

import os
from pathlib import Path

import checking
import jaxtyping
import pytest
import torch
from hypothesis import settings

checking.install(Path(__file__).parents[1] / "src")

from tersor.engines.targets import here  # noqa: E402 - once its types are checked

SHARED = Path(os.environ.get("TERSOR_SHARED") or Path(__file__).parents[1] / "../shared").resolve()


def pytest_configure(config):
    # Workers run side by side: more threads than cores would only slow each other down.
    torch.set_num_threads(1)
    # A busy machine must not fail a property by its clock; in continuous integration no draw is by chance.
    settings.register_profile("tersor", deadline=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("tersor")


def pytest_collection_modifyitems(items):
    if here().exact_int8:
        return
    for item in items:
        if item.get_closest_marker("exact_int8"):
            item.add_marker(pytest.mark.skip(reason="int8 products saturate on this CPU"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data, `shared / "data/cifar10"` and so on.

    Absent, the test is skipped on a contributor's machine and fails in continuous integration, where a
    silent skip would mean that the real networks were never tried.
    """
    if (SHARED / "data").is_dir():
        return SHARED
    reason = f"no shared data at {SHARED}; set TERSOR_SHARED to the folder that holds data/"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def cpu(monkeypatch, tmp_path_factory):
    """Call it with names of instruction sets: this machine's CPU then has these and no others."""

    def has(*flags: str) -> None:
        path = tmp_path_factory.mktemp("proc") / "cpuinfo"
        path.write_text(f"model name\t: A CPU of a test\nflags\t\t: {' '.join(flags)}\n")
        monkeypatch.setattr("tersor.engines.targets.CPUINFO", path)

    return has


@pytest.fixture
def quick_report(monkeypatch):
    """Reports without memory, whose measuring starts processes of several seconds, and with few rounds of timing."""

    from tersor.errors import EngineError

    def refused(*_, **__):
        raise EngineError("it takes long")

    monkeypatch.setattr("tersor.pipeline.graph.measuring.measure_memory", refused)
    monkeypatch.setattr("tersor.pipeline.graph.measuring.ROUNDS", 3)


@pytest.fixture
def unchecked(monkeypatch):
    """Lets arguments through that jaxtyping's annotations forbid, to test what the package itself says of them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
