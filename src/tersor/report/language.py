"""The report of a compressed language model, in a terminal and as an HTML page."""

import math
from collections import Counter
from collections.abc import Sequence

import rich.console
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.inert import plain
from tersor.measure.formatting import named_steps, size_text
from tersor.measure.gates import zeros_text
from tersor.measure.language import LanguageReport, WeightRecord
from tersor.measure.parts.folder_pruning import folder_summary
from tersor.report import svg
from tersor.report.shell import rendered
from tersor.report.tables.grid import Column, Grid
from tersor.terminal import Inert, Terminal
from tersor.words import _, shown

# The start of the logarithmic axis of errors.
_LEAST = 1e-6


def print_language_report(
    report: LanguageReport, console: rich.console.Console | None = None, *, top: int = 10
) -> None:
    """Print the headline, the figures, the weights with the largest errors, and every warning."""
    (console or Terminal()).print(Inert(render(report, top=top)), crop=False)


def render(report: LanguageReport, *, top: int = 10) -> Group:
    """The report for a rich console, with the `top` worst weights."""
    return Group(*_body(report, top))


def language_html(report: LanguageReport) -> str:
    """The self-contained page as text, with a table of every weight and a chart of errors."""
    quantized = [w for w in report.weights if w.error is not None]
    methods = _methods(report.weights)
    worst = sorted(quantized, key=lambda w: -(w.error or 0))[:24]
    return rendered(
        "language.html.j2",
        report=report,
        headline=report.headline(),
        tiles=_tiles(report),
        worst=[(w.name, _share(w.error), _share(w.rtn_error), _drawing(w)) for w in worst],
        weights=[_row(w, methods) for w in report.weights],
        floats=any(w.format is None for w in report.weights),
        facts=_facts(report) + _method_details(methods),
    )


def _body(report: LanguageReport, top: int) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text(plain(report.headline()), style="bold green"),
        Text(plain(f"{report.model} · {report.recipe} · {report.layout}"), style="dim"),
        "",
    ]
    figures = Table(box=None, pad_edge=False, show_header=False)
    for name, figure, remark in _tiles(report):
        figures.add_row(Text(name, style="dim"), Text(figure, style="bold"), Text(plain(remark), style="dim"))
    lines += [figures, *(Text(plain(f"{name} {value}"), style="dim") for name, value in _texts(report)), ""]
    lines.append(_layers(report.weights, top))
    in_float = [w for w in report.weights if w.format is None]
    for note in dict.fromkeys(w.note or "" for w in in_float):
        names = [w.name for w in in_float if (w.note or "") == note]
        listed = ", ".join(names[:2])
        if len(names) > 2:
            listed = _("{names} and {count} more", names=listed, count=len(names) - 2)
        lines.append(Text(plain(_("{name}: {text}", name=listed, text=shown(note))), style="yellow"))
    lines += [Text(plain(shown(warning)), style="yellow") for warning in report.warnings]
    return lines


def _layers(weights: Sequence[WeightRecord], top: int) -> RenderableType:
    grid = Grid(
        Column(_("weight")),
        Column(_("stored as")),
        Column(_("error"), right=True),
        Column(_("RTN’s"), right=True, drop=2),
        Column(_("tokens"), right=True, drop=3),
        Column(_("method"), drop=4, sentences=True),
    )
    worst = sorted((w for w in weights if w.format), key=lambda w: -(w.error or 0))
    methods = _methods(worst)
    for w in worst[:top]:
        tokens = f"{w.tokens:,}" if w.tokens else "–"
        grid.add(w.name, w.format or "", _share(w.error), _share(w.rtn_error), tokens, methods[w.method])
    more = len(worst) - top
    rest = Text(_("and {count} weights with less error", count=more), style="dim") if more > 0 else ""
    details = [Text(plain(_("{name}: {text}", name=n, text=v)), style="dim") for n, v in _method_details(methods)]
    return Group(grid, rest, *details)


def _methods(weights: Sequence[WeightRecord]) -> dict[str, str]:
    """The short name of each method: the part before the first comma, if that is unique."""
    methods = dict.fromkeys(w.method for w in weights if w.format)
    counts = Counter(m.split(", ")[0] for m in methods)
    return {m: short if counts[short := m.split(", ")[0]] == 1 else m for m in methods}


def _method_details(methods: dict[str, str]) -> list[tuple[str, str]]:
    """The short name and the rest of each method that a table shortens."""
    return [(short, method.removeprefix(short + ", ")) for method, short in methods.items() if short != method]


def _tiles(report: LanguageReport) -> list[tuple[str, str, str]]:
    """Name, value and remark of the main figures."""
    sizes = f"{size_text(report.original_bytes)} → {size_text(report.compressed_bytes)}"
    if report.bits_per_weight is not None:
        sizes += _("; ") + _("{bits} bits per quantized weight", bits=f"{report.bits_per_weight:.2f}")
    tiles = [(_("Size"), f"{report.compression:.2f}x", sizes)]
    for p in report.pruning:
        times = f"{p.parameters_before / max(1, p.parameters_after):.2f}x"
        tiles.append((_("Parameters"), times, folder_summary(p)))
    if report.original is not None and report.compressed is not None:
        a, b = report.original, report.compressed
        error = "" if b.standard_error is None else f" ± {b.standard_error:.4f}"
        remark = _("{before} → {after} nats per token", before=f"{a.nats:.4f}", after=f"{b.nats:.4f}{error}")
        tiles.append((_("Perplexity"), f"{a.perplexity:.4g} → {b.perplexity:.4g}", remark))
    if report.divergence is not None:
        share = f"{report.divergence.agreement * 100:.1f} %"
        remark = _("nats per token; same top prediction in {share}", share=share)
        tiles.append((_("Divergence"), f"{report.divergence.nats:.4f}", remark))
    for d in report.decoding:
        remark = _("{engine}, batch 1", engine=d.engine)
        if d.original_tokens_per_second:
            remark += _("; ") + _("FP {rate}", rate=f"{d.original_tokens_per_second:.1f}")
        tiles.append((_("Decoding"), _("{rate} tokens/s", rate=f"{d.tokens_per_second:.1f}"), remark))
    shares = [w.error / w.rtn_error for w in report.weights if w.error is not None and w.rtn_error]
    if shares:
        middle = sorted(shares)[len(shares) // 2]
        tiles.append((_("Error of layers"), f"{middle:.2f}", _("relative to round to nearest, median layer")))
    return tiles + _trained(report)


def _trained(report: LanguageReport) -> list[tuple[str, str, str]]:
    """What training gave: the median block, and the scales of the whole model."""
    shares = sorted(t.after / t.before for t in report.training if t.name and t.before)
    tiles = []
    if shares:
        remark = _("relative to the solver’s codes, on held-out text, median of {count} blocks", count=len(shares))
        tiles.append((_("Error after training"), f"{shares[len(shares) // 2]:.2f}", remark))
    for t in (t for t in report.training if not t.name):
        remark = _("divergence in nats per token, on held-out calibration text")
        tiles.append((_("Scales, end to end"), f"{t.before:.4f} → {t.after:.4f}", remark))
    return tiles


def _texts(report: LanguageReport) -> list[tuple[str, str]]:
    """The texts used for calibration and evaluation."""
    rows = [(_("Calibrated on"), shown(report.calibration or "") or _("no data: the recipe needs none"))]
    if report.zeros is not None:
        rows = [*rows, (_("Zeros"), zeros_text(report.zeros))]
    return rows if report.compressed is None else [*rows, (_("Evaluated on"), shown(str(report.compressed.protocol)))]


def _share(error: float | None) -> str:
    return "–" if error is None else f"{error:.2e}"


def _drawing(weight: WeightRecord) -> object:
    figures = {"name": weight.name, "error": _share(weight.error), "rtn": _share(weight.rtn_error)}
    label = _("{name}: error {error}, round to nearest {rtn}", **figures)
    return svg.twin_bar(_decades(weight.rtn_error), _decades(weight.error), 6.0, label)


def _decades(error: float | None) -> float | None:
    return None if error is None else max(0.0, math.log10(max(error, _LEAST) / _LEAST))


def _row(w: WeightRecord, methods: dict[str, str]) -> dict[str, object]:
    return {
        "name": w.name,
        "shape": " × ".join(map(str, w.shape)),
        "format": w.format or "float",
        "method": _("; ").join(filter(None, (methods[w.method] if w.format else None, shown(w.note or "")))),
        "bytes": size_text(w.bytes),
        "error": _share(w.error),
        "rtn": _share(w.rtn_error),
        "tokens": f"{w.tokens:,}" if w.tokens else "–",
        "fell": w.format is None,
    }


def _facts(report: LanguageReport) -> list[tuple[str, str]]:
    env = report.environment
    machine = [env.cpu or _("unknown"), _("{count} threads", count=env.threads), env.precision]
    machine = machine if env.device == "cpu" else [env.device, *machine]
    return [
        (_("Architecture"), report.architecture),
        (_("Recipe"), report.recipe),
        (_("Layout of the files"), report.layout),
        *_texts(report),
        (_("Processor"), _(", ").join(machine)),
        (_("Versions"), ", ".join(f"{k} {v}" for k, v in env.versions.items())),
        (_("Seed"), str(report.seed)),
        (_("Seconds"), _(", ").join(f"{k} {v:.1f}" for k, v in named_steps(report.timings_s))),
        (_("Peak memory of the process"), size_text(report.peak_bytes)),
    ]
