"""What the programs of examples/deploy need and no Python package brings, kept in build/ between runs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/deploy"
# libonnxruntime-dev of Debian 13, whose headers any later library serves.
SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main\n"


def absent(reason: str) -> None:
    """Skip on a contributor's machine, and fail where .ci/run should have installed it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(*names: str) -> str:
    """The path of the first of some programs that is installed."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        absent(f"no {names[0]} here; apt-get install {names[0]}")
    return str(found)


def run(*command: object, folder: Path | None = None, **variables: str) -> str:
    """What a command prints; a failure tells all that it printed."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def follow(kind: str, section: str, folder: Path, places: dict[str, Path] | None = None, **variables: str) -> None:
    """Run what a section of a page tells to type, but for what pip installs.

    Args:
        folder: stands for a clone.
        places: where folders lie that the page names.
    """
    page = (ROOT / f"docs/en/how-to/deploy-{kind}.md").read_text(encoding="utf8")
    part = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line[2:] for line in part.splitlines() if line.startswith("$ ") and not line.startswith("$ pip ")]
    assert lines
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in lines:
        for name, place in (places or {}).items():
            line = line.replace(name, str(place))
        run("bash", "-c", line, folder=folder, PATH=path, **variables)


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder build/NAME, made if it is not there; a making that fails leaves nothing."""
    final = ROOT / "build" / name
    if not final.is_dir():
        final.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent) as work:
            part = Path(work) / name
            part.mkdir()
            make(part)
            try:
                part.rename(final)
            except OSError:  # another process was first
                assert final.is_dir()
    return final


def node_modules() -> Path:
    """The packages that examples/deploy/javascript/package.json pins, from npm."""
    npm = program("npm")

    def install(folder: Path) -> None:
        shutil.copy(EXAMPLES / "javascript/package.json", folder)
        run(npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", folder=folder)

    return kept("node", install) / "node_modules"


def onnxruntime_headers() -> Path:
    """The folder that holds onnxruntime_cxx_api.h: the system's, or Debian 13's, which apt downloads."""
    system = Path("/usr/include/onnxruntime")
    if (system / "onnxruntime_cxx_api.h").is_file():
        return system
    try:
        return kept("onnxruntime-dev", _download) / "include/onnxruntime"
    except (AssertionError, OSError) as error:
        pytest.skip(f"apt cannot get the headers of ONNX Runtime here: {error}")


def _download(folder: Path) -> None:
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(SOURCE)
    places = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in places.items() for word in ("-o", f"{key}={value}")]
    run("apt-get", "-qq", *options, "update", folder=folder)
    run("apt-get", "-qq", *options, "download", "libonnxruntime-dev", folder=folder)
    run("dpkg", "-x", *folder.glob("*.deb"), folder / "package", folder=folder)
    (folder / "package/usr/include").rename(folder / "include")
    for name in ("lists", "cache", "package"):
        shutil.rmtree(folder / name)
