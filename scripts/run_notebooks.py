"""Run the notebooks of the documentation and keep their outputs, without what changes from one run to the next.

    python scripts/run_notebooks.py                            # all
    python scripts/run_notebooks.py docs/en/notebooks/cnn.ipynb

Those of `docs/zh` speak Chinese. Each runs in an empty folder, on two threads.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Bars of other packages, which a saved notebook would show half-way, and their wish for ipywidgets.
_QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
_BAR = re.compile(r"[^\r\n]*\d%\|[^\r\n]*")
SECONDS = 900  # of a cell; a whole notebook takes less than 60 on two cores


def notebooks() -> list[Path]:
    """Every notebook of the documentation."""
    return sorted(DOCS.rglob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run in the language of its folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = {"OMP_NUM_THREADS": "2", **os.environ, **_QUIET, "TERSOR_LANG": path.relative_to(DOCS).parts[0]}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "work").mkdir()
        sockets = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})  # files, no ports
        client = NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, config=sockets
        )
        client.execute(cwd=f"{folder}/work", env=environment)
    return normalized(notebook)


def normalized(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without counters, timings, identifiers by chance, the kernel's version and empty outputs."""
    notebook.metadata = {"language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_normalized(output) for output in cell.outputs if _seen(output)]
    return notebook


def _normalized(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "execution_count" in output:
        output.execution_count = None
    return output


def _seen(output: nbformat.NotebookNode) -> bool:
    """Whether an output shows anything but bars: ours leave an empty output, those of other packages lines."""
    if output.output_type == "display_data":
        return any(map(str.strip, output.data.values()))
    return output.output_type != "stream" or bool(_BAR.sub("", output.text).strip())


def main() -> None:
    """Run the given notebooks, or all."""
    for path in [Path(name).resolve() for name in sys.argv[1:]] or notebooks():
        found = executed(path)
        nbformat.write(found, path)
        print(f"{path.relative_to(DOCS)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
