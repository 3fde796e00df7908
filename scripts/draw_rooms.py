"""Draw the picture of the page "How Tersor is built": ``python scripts/draw_rooms.py docs``.

It is written in each language, to docs/en/images and docs/zh/images. Two columns: the packages, each built on those
below it, and the path of one weight through them.
"""

import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

# From the top; a package imports only from those below it, never from those above or beside it.
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
# (the package's row, what happens to the weight there)
STEPS: tuple[tuple[int, str], ...] = (
    (1, "a step of the recipe takes the subject"),
    (5, "captured: the weight and the operator that reads it"),
    (6, "what the engine computes for that operator"),
    (7, "decide: number format, solver, sparsity, reason"),
    (9, "observe: statistics of the layer's inputs"),
    (8, "ask: codes and scales, or zeros, and a record"),
    (11, "a QTensor: codes, scale, zero point"),
    (4, "written so that other tools can read it"),
    (3, "lowered, compiled, audited"),
    (2, "measured: a row of the report"),
)
TITLES = (
    "The packages of Tersor, from errors up to the command line, and the path of a weight through them",
    "Packages",
    "each imports only from those below it",
    "The path of a weight",
    "numbered in order of execution",
)
CHINESE = dict(
    zip(
        (*TITLES, *(text for _, text in STEPS)),
        (
            "Tersor 的各个包，从错误到命令行，以及一个权重在其中的路径",
            "包",
            "每个包只导入位于它下面的包",
            "权重的路径",
            "按执行顺序编号",
            "配方的一个步骤接受 subject",
            "捕获：权重和读取它的算子",
            "引擎能以什么方式计算该算子",
            "decide：数值格式、求解器、稀疏度、理由",
            "observe：该层输入的统计量",
            "ask：码值和缩放因子，或者零，以及一条记录",
            "QTensor：码值、缩放因子、零点",
            "写成其他工具能读取的文件",
            "下降（lowering）、编译、审计",
            "测量：报告中的一行",
        ),
        strict=True,
    )
)
WIDTH, ROW, TOP, LEFT, ROOM = 940, 44, 56, 24, 400
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


def drawing(words: Mapping[str, str]) -> str:
    """The picture as SVG, legible on light and on dark pages, with the translations given."""
    height, right = TOP + ROW * len(ROOMS) + 16, LEFT + ROOM + 70
    label, packages, layering, path, order = (escape(words.get(text, text)) for text in TITLES)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{packages}</text>',
        f'<text class="small" x="{LEFT}" y="43">{layering}</text>',
        f'<text class="title" x="{right}" y="24">{path}</text>',
        f'<text class="small" x="{right}" y="43">{order}</text>',
    ]
    for row, names in enumerate(ROOMS):
        parts += _rooms(row, names)
    for number, (row, text) in enumerate(STEPS, 1):
        parts += _step(number, row, words.get(text, text))
    return "\n".join([*parts, "</svg>", ""])


def _rooms(row: int, names: tuple[str, ...]) -> list[str]:
    """Boxes side by side, with room for the length of each name."""
    y, x, parts = TOP + ROW * row, LEFT, []
    unit = (ROOM - 8 * (len(names) - 1)) / sum(len(name) + 3 for name in names)
    for name in names:
        width = unit * (len(name) + 3)
        parts.append(f'<rect class="room" x="{x:g}" y="{y}" width="{width:g}" height="{ROW - 8}" rx="6"/>')
        parts.append(f'<text x="{x + width / 2:g}" y="{y + 23}" text-anchor="middle">{escape(name)}</text>')
        x += width + 8
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
    for language, words in (("en", {}), ("zh", CHINESE)):
        picture = Path(sys.argv[1]) / language / "images/rooms.svg"
        picture.parent.mkdir(exist_ok=True)
        picture.write_text(drawing(words), encoding="utf-8")
