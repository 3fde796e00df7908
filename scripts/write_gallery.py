"""Write the table of presets into the gallery's page of every language: `python scripts/write_gallery.py`."""

from pathlib import Path

from tersor.pipeline.gallery import gallery
from tersor.words import shown, speaking

DOCS = Path(__file__).parents[1] / "docs"
START, END = "<!-- presets -->\n", "<!-- end of presets -->\n"
# The head of the table, the words for yes and no, and for data to train with.
WORDS = {
    "en": ("recipe | what it does | weight bits | activation bits | needs data | tasks run in | folders", "yes", "no",
           "to train"),
    "zh": ("配方 | 说明 | 权重位宽 | 激活位宽 | 需要数据 | 任务的引擎 | 模型文件夹", "是", "否", "训练数据"),
}  # fmt: skip


def page(language: str) -> Path:
    """The gallery's page."""
    return DOCS / language / "reference" / "gallery.md"


def table(language: str) -> str:
    """The table of presets in Markdown."""
    head, yes, no, to_train = WORDS[language]
    rows = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    with speaking(language):
        for one in gallery():
            cells = (
                f"`{one.name}`", shown(one.description), one.weight_bits, one.activation_bits,
                to_train if one.trains else yes if one.needs_data else no, ", ".join(one.engines) or "–",
                yes if one.folders else no,
            )  # fmt: skip
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def updated(text: str, language: str) -> str:
    """A page with the table of today."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table(language)}\n{END}{after}"


if __name__ == "__main__":
    for name in WORDS:
        page(name).write_text(updated(page(name).read_text(encoding="utf-8"), name), encoding="utf-8")
