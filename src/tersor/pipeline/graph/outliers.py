"""The outlier report: from a few calibration samples, the ranges, int8 cost and advice for every layer's input."""

import difflib
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from tersor.arguments import path_of, whole
from tersor.checkpoints.destination import check_file, write_page
from tersor.errors import CalibrationError, SavedFolderError, TaskError
from tersor.measure.outliers import ROWS, LayerOutliers, layer_outliers
from tersor.network.calibrate import calibrate
from tersor.network.capture import capture
from tersor.network.network import LINEARS, WEIGHTED, Network, title, weight_node
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.rewrites.fold_constants import FoldConstants
from tersor.network.rewrites.smooth import smoothable, smoothing
from tersor.observers import Statistics
from tersor.pipeline.graph.batches import exactly, passing
from tersor.pipeline.progress import Stages
from tersor.report.outliers import page
from tersor.task import Task, check_task
from tersor.terminal import Shown
from tersor.turns import in_turn
from tersor.words import _


@dataclass(frozen=True, eq=False, repr=False)
class Outliers(Shown):
    """The result of ``tersor.outliers``, shown as a table in notebooks and by ``rich``.

    Attributes:
        task: the task's name. samples: the number of observed samples.
        layers: one record for every linear layer and convolution, in execution order.
    """

    task: str
    samples: int
    layers: tuple[LayerOutliers, ...]

    def to_html(self, path: Path | str) -> Path:
        """Write one self-contained page with a chart of every layer, and return its path.

        Args:
            path: a file that ends in ``.html``; any other path is a folder, in which ``outliers.html`` is written.
        """
        return write_page(page_file(path), page(self.task, self.samples, self.layers))

    def to_json(self) -> str:
        """The report as JSON, with minimum and maximum of every channel."""
        layers = [layer.to_dict() for layer in self.layers]
        return json.dumps({"task": self.task, "samples": self.samples, "layers": layers}, allow_nan=False)


def page_file(path: Path | str, name: str = "outliers.html") -> Path:
    """The checked path of a page: itself if it ends in ``.html``, otherwise ``name`` in that folder.

    Raises:
        SavedFolderError: it cannot be written there.
    """
    path = path_of("page", path, SavedFolderError)
    return check_file(path if path.suffix == ".html" else path / name, ".html")


@in_turn
def outliers(task: Task, samples: int = 64, layer: str = "*", *, progress: bool = True) -> Outliers:
    """Find layers whose inputs have outliers, their cost in int8, and a remedy.

    The samples run through the float network once; nothing is quantized. For the input of every linear layer and
    convolution, the report gives the range of each channel, the kurtosis, the ratios of the largest channel and of the
    largest token to the median one, and the estimated SQNR in dB of int8 with one scale, with SmoothQuant
    (arXiv 2211.10438), and with one scale per token. The advice is the cheapest of these that reaches 30 dB or
    is within 3 dB of the best; float or int16 if the best is below 20 dB.

    Args:
        samples: the number of calibration samples.
        layer: only layers whose name matches this glob.
        progress: show a progress bar on a terminal.

    Raises:
        TaskError: the network has no linear layer and no convolution.
        CalibrationError: no layer matches, naming the nearest; or the data is invalid, as in ``compress``.

    >>> import torch, tersor
    >>> random = torch.Generator().manual_seed(0)
    >>> loud = torch.where(torch.arange(64) == 3, 100.0, 1.0)
    >>> data = [(torch.randn(64, 64, generator=random) * loud,)]
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 8)).eval()
    >>> found = tersor.outliers(tersor.Task("loud", net, (torch.zeros(1, 64),), lambda: data))
    >>> found.layers[0].outlying, found.layers[0].advice
    ([3], 'smooth')
    """
    check_task(task, "outliers")
    if not isinstance(layer, str):
        raise TaskError(f"layer is {layer!r:.80}: give a glob of names, such as *.head")
    samples = whole("samples", samples, 1, None, "64 show what there is to see", CalibrationError)
    with Stages(progress) as stages:
        with stages.stage("capture", _("capturing the network")):
            network = FoldBatchNorm()(FoldConstants()(capture(task.model, task.example, task.dynamic)))
        layers = _chosen(network, layer)
        with stages.stage("calibrate", _("observing the layers' inputs"), samples) as bar:
            seen, count = _observed(task, network, layers, samples, bar.at)
        with stages.stage("measure", _("estimating their errors"), len(layers)) as bar:
            records = []
            scales = _smoothing(network, seen)
            for node in layers:
                records.append(layer_outliers(network, node, seen[node], scales.get(node)))
                bar.advance()
    return Outliers(task.name, count, tuple(records))


def _chosen(network: Network, pattern: str) -> list[fx.Node]:
    """The weighted layers that match the pattern and read an activation."""
    layers = [n for n in network.operators() if n.target in WEIGHTED and _source(n).op != "get_attr"]
    if not layers:
        raise TaskError("the network has no linear layer and no convolution, so there are no inputs to observe")
    names = [title(n) for n in layers]
    chosen = [n for n, name in zip(layers, names, strict=True) if fnmatchcase(name, pattern)]
    if not chosen:
        near = difflib.get_close_matches(pattern, names, 3, 0.3) or names[:5]
        raise CalibrationError(f"no layer matches {pattern!r}; nearest: {', '.join(near)}")
    return chosen


def _observed(
    task: Task, network: Network, layers: list[fx.Node], samples: int, on_batch: Any
) -> tuple[dict[fx.Node, Statistics], int]:
    """The statistics of each layer's input, and their number of samples."""
    found: dict[fx.Node, Statistics] = {}
    count = 0
    # Two passes are needed only if one value is read along different dimensions.
    for group in _by_axis(layers):
        inputs = {_source(n).name for n in group}
        last = {_source(n).name for n in group if n.target in LINEARS}
        batches = exactly(passing(task, network), samples, network.dynamic_batch)
        seen = calibrate(network, inputs, batches, channels_last=last, keep=ROWS, on_batch=on_batch)
        found |= {n: seen.statistics[_source(n).name] for n in group}
        count = seen.samples
    return found, count


def _by_axis(layers: list[fx.Node]) -> list[list[fx.Node]]:
    last = {_source(n) for n in layers if n.target in LINEARS}
    first = [n for n in layers if n.target not in LINEARS and _source(n) in last]
    return [group for group in ([n for n in layers if n not in first], first) if group]


def _smoothing(network: Network, seen: dict[fx.Node, Statistics]) -> dict[fx.Node, Tensor]:
    """The smoothing factors of the linear layers' inputs; layers that read the same value share them."""
    scales: dict[fx.Node, Tensor] = {}
    for readers in smoothable(network).values():
        known = next((seen[n].channels for n in readers if n in seen), None)
        if known is not None:
            weights = [network.tensor(w) for n in readers if (w := weight_node(n)) is not None]
            scales |= dict.fromkeys(readers, smoothing(known, weights))
    return scales


def _source(layer: fx.Node) -> fx.Node:
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    return source
