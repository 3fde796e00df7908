"""Lighthouse's marks of our pages: accessibility and best practices, at 95 of 100 or more."""

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import CHECK, DESK, PHONE, browser, program
from deployed import kept
from sample_report import latency, resnet20, resnet50

from tersor.report import html, write_report
from tersor.report.compare import compared, page

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGE = "lighthouse@12.8.2"
LEAST = 0.95
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *args):
        pass


def comparison(folder: Path) -> str:
    """The page of three runs, which stand beside it."""
    folders = []
    for name, size, time, metric, drop in (
        ("int8-static", 338_112, 0.236, 0.9168, (-0.0011, 0.0015)),
        ("int4-gptq", 190_000, 0.31, 0.9105, (0.004, 0.009)),
        ("int4-weight", 195_000, 0.32, 0.902, (0.012, 0.018)),
    ):
        changes = {"recipe": name, "compressed.bytes": size, "compressed.latency_ms": latency(time, 1),
                   "compressed.metric": metric, "compressed.metric_interval": drop}  # fmt: skip
        folders.append(folder / name)
        folders[-1].mkdir()
        write_report(resnet20(**changes), folders[-1])
    return page(compared(folders), folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the documentation, a report and a comparison, and its address."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install .[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder)]
    # Whether the documentation is right, other tests say.
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "report.html").write_text(html(resnet50()), encoding="utf-8")
    (folder / "compare.html").write_text(comparison(folder), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def lighthouse():
    """The program, installed by npm into build/lighthouse, where git does not see it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not here: apt-get install npm")

    def install(folder: Path) -> None:
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr[-300:]}")

    return kept("lighthouse", install) / "node_modules" / ".bin" / "lighthouse"


@pytest.mark.parametrize("name", ["report.html", "compare.html", "index.html"])
def test_marks(site, lighthouse, tmp_path, name):
    out = tmp_path / "marks.json"
    command = [
        str(lighthouse), f"{site}/{name}", "--quiet", "--output=json", f"--output-path={out}",
        "--only-categories=accessibility,best-practices", f"--chrome-flags={FLAGS}",
    ]  # fmt: skip
    environment = {**os.environ, "CHROME_PATH": program()}
    for _ in range(2):  # on a busy machine a page may not paint in time
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    audits = found["audits"]
    for key, category in found["categories"].items():
        lost = {ref["id"]: audits[ref["id"]].get("details", {}).get("items", [])[:3]
                for ref in category["auditRefs"] if audits[ref["id"]]["score"] not in (None, 1)}  # fmt: skip
        print(name, key, category["score"], json.dumps(lost)[:3000])
        assert category["score"] >= LEAST, (key, category["score"], lost)


@pytest.mark.parametrize("name", ["compare.html", "index.html", "zh/"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_or_overlaps(site, name, width, dark):
    with browser() as tab:
        tab.open(f"{site}/{name}", width, dark)
        assert tab.run(CHECK) == []
