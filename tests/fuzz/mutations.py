"""Changes of files that somebody might have made on purpose; the same seed makes the same change."""

import json
import random
from typing import Any

# Values that no field expects, those that ask for memory or time, and names that lead elsewhere.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, -(2**63), 2**64, 10**9, 10**12, 10**18, 10**30, 1.5, -0.0,
    1e308, float("inf"), float("nan"), "", "0", "a", "\u0000", "\ud800", "é" * 50, "x" * 5000, "../../etc/passwd",
    "/etc/passwd", "..", ".", "a/b", "http://localhost/x", "__class__", "self", "forward", "re:(a+)+$", "re:[", "cpu",
    "float32", "int8", "meta", "aten.empty.memory_format", "aten.as_strided.default", "aten.full.default",
    "aten.repeat.default", "operator.getitem", "aten.mm.default", "<script>", "\x1b[31m", "{{7*7}}",
    "group:10000000000", "!!python/object:os.system", [], {}, [[]], [{}], {"": None}, [0] * 100, [10**9] * 3,
    [-1], [None], {"a": {"b": []}},
    {"node": "input"}, {"dtype": "float64"}, {"torch": "strided"}, {"float": "nan"},
    {"auto_map": {"AutoConfig": "x.Y"}},
)  # fmt: skip


def mutated(content: bytes, name: str, seed: int) -> bytes:
    """The content of a file with one to four changes: of values, if it is JSON, otherwise of lines or bytes."""
    draw = random.Random(f"{name} {seed}")
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = draw.choice(_KINDS.get(name.rpartition(".")[2], (_bytes,)))(content, draw)
    return content


def _values(content: bytes, draw: random.Random) -> bytes:
    """JSON of which one value is another, is missing, is there twice, or stands elsewhere."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return _bytes(content, draw)
    places = list(_places(data))
    if not places:
        return json.dumps(draw.choice(HOSTILE)).encode("utf-8", "surrogatepass")
    holder, key = draw.choice(places)
    kind = draw.random()
    if kind < 0.6:
        holder[key] = draw.choice(HOSTILE)
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.8:
        other, name = draw.choice(places)
        holder[key] = json.loads(json.dumps(other[name])) if isinstance(other, dict) and name in other else None
    elif kind < 0.9 and isinstance(holder[key], int | float):
        number = holder[key]
        holder[key] = draw.choice((number + 1, -number, number * 1000, float(number), not number))
    else:
        holder[key] = [holder[key]]
    return json.dumps(data).encode("utf-8", "surrogatepass")


def _places(data: Any) -> Any:
    """(container, key) of every value."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield data, key
            yield from _places(value)


def _lines(content: bytes, draw: random.Random) -> bytes:
    """Text of which one line is missing, is there often, is indented, or has another value."""
    lines = content.split(b"\n")
    k = draw.randrange(len(lines))
    name = lines[k].split(b":")[0]
    hostile = json.dumps(draw.choice(HOSTILE)).encode()
    lines[k : k + 1] = draw.choice(
        ([], [lines[k]] * 3, [b"  " + lines[k]], [name + b": " + hostile], [name + b": &a [*a, *a]"], [b"- " * 50])
    )
    return b"\n".join(lines)


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes that were flipped, cut, put in, repeated, or set to the ends of their range."""
    if not content:
        return bytes([draw.randrange(256)])
    at = draw.randrange(len(content)) if draw.random() < 0.4 else draw.randrange(min(len(content), 400))
    length = draw.choice((1, 1, 2, 4, 8))
    filled = draw.choice((b"\xff", b"\x00", b"\x7f", b"\x80", bytes([draw.randrange(256)]))) * length
    return draw.choice((
        content[:at],
        content[:at] + filled + content[at + length :],
        content[:at] + filled + content[at:],
        content[:at] + content[at + length :],
        content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :],
        content + content[at:],
    ))  # fmt: skip


_KINDS = {"json": (_values, _values, _values, _bytes), "yaml": (_lines, _lines, _bytes), "jsonl": (_lines, _bytes),
          "xml": (_bytes,)}  # fmt: skip
