"""The speed gate: pruning is called faster only if a pair measured here says so beyond noise."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from tersor.measure.formatting import change_text, size_text
from tersor.measure.parts.gates import Pair, Zeros
from tersor.measure.schema import Report
from tersor.measure.speed import Speed
from tersor.words import _, shown

LEVEL = 6
# Files are deflated in pieces, at most LIMIT bytes of them, for it takes a second for some 50 MB.
PIECE, LIMIT = 1 << 20, 256 << 20


def deflated(files: Sequence[Path], limit: int = LIMIT) -> tuple[int, bool]:
    """Bytes of files after zlib at level 6, and whether that is an estimate from a sample of their pieces.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     file.write(bytes(100_000)) and None
    ...     file.flush()
    ...     deflated([Path(file.name)])[0] < 200
    True
    """
    pieces = [(path, at) for path in files for at in range(0, path.stat().st_size, PIECE)]
    total = sum(path.stat().st_size for path in files)
    most = max(1, limit // PIECE)
    chosen = pieces if len(pieces) <= most else [pieces[k * len(pieces) // most] for k in range(most)]
    read = packed = 0
    for path, at in chosen:
        with path.open("rb") as file:
            file.seek(at)
            piece = file.read(PIECE)
        read += len(piece)
        packed += len(zlib.compress(piece, LEVEL))
    return round(packed * total / max(1, read)), len(chosen) < len(pieces)


def speed_of(pair: Pair) -> Speed:
    """What may be said about the speed of a pair."""
    return Speed(pair.speedup, *pair.spread)


def zeros_text(zeros: Zeros, pair: Pair | None = None) -> str:
    """What zeros save and whether they make it faster, in a sentence without stop.

    >>> zeros = Zeros(weights=1000, zeros=800, bytes=1_000_000, deflated=400_000, condition="x")
    >>> zeros_text(zeros)
    '80 % of the weights are zeros: smaller when compressed (1.00 MB → 400 kB by deflate), not faster here: x'
    >>> zeros_text(zeros, Pair(without="zeros", speedup=1.01, spread=(0.95, 1.05)))
    '80 % of the weights are zeros: smaller when compressed (1.00 MB → 400 kB by deflate), not faster here (0.95x to \
1.05x against other values in their place): x'
    """
    numbers = {"share": _share(zeros.share), "before": size_text(zeros.bytes), "after": size_text(zeros.deflated)}
    if zeros.pattern:
        what = _("{share} % of the weights are zeros ({pattern})", pattern=zeros.pattern, **numbers)
    else:
        what = _("{share} % of the weights are zeros", **numbers)
    size = _("smaller when compressed ({before} → {after} by deflate)", **numbers)
    if zeros.deflated >= zeros.bytes:
        size = _("not smaller when compressed ({before} → {after} by deflate)", **numbers)
    return _("{what}: {size}, {speed}", what=what, size=size, speed=_zeros_speed(zeros, pair))


def sentences(report: Report) -> list[str]:
    """What a report says of the speed of pruning: of its zeros, then of the channels that it removed; with capitals."""
    pairs = {pair.without: pair for pair in report.pairs}
    found = [] if report.zeros is None else [zeros_text(report.zeros, pairs.get("zeros"))]
    found += [channels_text(pairs["channels"])] if "channels" in pairs else []
    return [text[:1].upper() + text[1:] for text in found]


def _share(share: float) -> str:
    return f"{100 * share:.3g}"


def _zeros_speed(zeros: Zeros, pair: Pair | None) -> str:
    found = None if pair is None else speed_of(pair)
    if found is not None and (found.faster or found.slower):
        change = change_text(found.value, "faster", "slower")
        return _(
            "{change} here than with other values in their place ({interval})", change=change, interval=found.interval
        )
    text = _("not faster here")
    if found is not None:
        text = _("not faster here ({interval} against other values in their place)", interval=found.interval)
    return _("{name}: {text}", name=text, text=shown(zeros.condition)) if zeros.condition else text


def channels_text(pair: Pair) -> str:
    """Whether the removed channels make it faster, in a sentence without stop.

    >>> channels_text(Pair(without="channels", speedup=1.3, spread=(1.25, 1.36)))
    'pruning alone makes it 1.3x faster here than the same recipe without it (1.25x to 1.36x)'
    >>> channels_text(Pair(without="channels", speedup=1.0, spread=(0.97, 1.02)))
    'not called faster by pruning: no difference beyond the noise (0.97x to 1.02x) from the same recipe without it'
    """
    found = speed_of(pair)
    if found.faster:
        return _(
            "pruning alone makes it {change} here than the same recipe without it ({interval})",
            change=found.text, interval=found.interval,
        )  # fmt: skip
    if found.slower:
        return _(
            "not called faster by pruning: it is {change} than the same recipe without it ({interval})",
            change=found.text, interval=found.interval,
        )  # fmt: skip
    return _("not called faster by pruning: {text} from the same recipe without it", text=found.text)
