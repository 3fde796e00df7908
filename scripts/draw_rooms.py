"""Draw the picture of the page "How Tersor is built": ``python scripts/draw_rooms.py docs/en/images/rooms.svg``.

Two columns: the rooms, each resting on those below it, and the way of one weight through them.
"""

import sys
from html import escape
from pathlib import Path

# From the top; a room uses what stands below it, never what stands above or beside it.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("cli", "demo"),
    ("pipeline: graph · folder · modules",),
    ("report", "measure"),
    ("engines",),
    ("checkpoints",),
    ("network",),
    ("policy",),
    ("recipe",),
    ("solvers",),
    ("observers",),
    ("task",),
    ("numerics", "metrics"),
    ("tables", "former_names"),
    ("arguments", "user_code", "files", "packages", "turns"),
    ("errors", "process", "terminal"),
    ("words", "inert"),
)
# (the room's row, what happens to the weight there)
STEPS: tuple[tuple[int, str], ...] = (
    (1, "a step of the recipe takes the subject"),
    (5, "captured: the weight and the operator that reads it"),
    (6, "what the engine computes for that operator"),
    (7, "decide: number format, solver, sparsity, reason"),
    (9, "observe: statistics of what it reads"),
    (8, "ask: codes and scales, or zeros, and a record"),
    (11, "a QTensor: codes, scale, zero point"),
    (4, "written so that other tools read it"),
    (3, "lowered, compiled, audited"),
    (2, "measured, and a line of the report"),
)
WIDTH, ROW, TOP, LEFT, ROOM = 940, 44, 56, 24, 330
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2933 }
  .title { font-weight: 600 } .small { font-size: 12px; fill: #52606d }
  .room { fill: #e0f2f1; stroke: #00796b } .number { fill: #00796b } .digit { fill: #fff; font-weight: 600 }
  .line { stroke: #9aa5b1; fill: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb } .small { fill: #9aa5b1 } .room { fill: #12403b; stroke: #4db6ac }
    .number { fill: #4db6ac } .digit { fill: #10201e } .line { stroke: #616e7c }
  }
"""


def drawing() -> str:
    """The picture as SVG, legible on light and on dark pages."""
    height = TOP + ROW * len(ROOMS) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The rooms of Tersor, from errors up to the command line, and the way of a weight through them">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">Rooms</text>',
        f'<text class="small" x="{LEFT}" y="43">each uses only what stands below it</text>',
        f'<text class="title" x="{LEFT + ROOM + 70}" y="24">The way of a weight</text>',
        f'<text class="small" x="{LEFT + ROOM + 70}" y="43">numbered in the order in which it happens</text>',
    ]
    for row, names in enumerate(ROOMS):
        parts += _rooms(row, names)
    for number, (row, text) in enumerate(STEPS, 1):
        parts += _step(number, row, text)
    return "\n".join([*parts, "</svg>", ""])


def _rooms(row: int, names: tuple[str, ...]) -> list[str]:
    width, y = (ROOM - 8 * (len(names) - 1)) / len(names), TOP + ROW * row
    parts = []
    for k, name in enumerate(names):
        x = LEFT + k * (width + 8)
        parts.append(f'<rect class="room" x="{x:g}" y="{y}" width="{width:g}" height="{ROW - 8}" rx="6"/>')
        parts.append(f'<text x="{x + width / 2:g}" y="{y + 23}" text-anchor="middle">{escape(name)}</text>')
    return parts


def _step(number: int, row: int, text: str) -> list[str]:
    y, x = TOP + ROW * row + (ROW - 8) // 2, LEFT + ROOM + 70
    return [
        f'<path class="line" d="M{LEFT + ROOM + 4} {y} H{x - 16}"/>',
        f'<circle class="number" cx="{x}" cy="{y}" r="12"/>',
        f'<text class="digit" x="{x}" y="{y + 5}" text-anchor="middle">{number}</text>',
        f'<text x="{x + 22}" y="{y + 5}">{escape(text)}</text>',
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing(), encoding="utf-8")
