"""Write the pictures of README and documentation from a fresh demo: ``python scripts/screenshots.py [DOCS]``.

DOCS is docs/ by default. The pictures come into its en/images and zh/images, each in its language: the top of a page in
light colours, 1080 pixels wide, below 150 kB. Needs Chromium, and an idle machine, since they show latencies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tersor.measure import read_report
from tersor.report import html
from tersor.words import speaking

HERE = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1080
LIMIT = 150_000
RUNS = ("int8-static", "int8-weight")  # recipes, and folders of the same names

# picture: the page in the work folder, and the height that is shown
PICTURES = {"report.png": ("report.html", 640), "compare.png": ("compare.html", 600)}


def browser() -> str:
    """The path of Chromium or Chrome; ends the script with a message where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or sys.exit(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")


def shoot(page: Path, picture: Path, height: int) -> None:
    """The first ``height`` pixels of an HTML file as a PNG of 64 colours."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={profile}", f"--window-size={WIDTH},{height}", "--virtual-time-budget=3000",
             f"--screenshot={picture}", page.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    small = Image.open(picture).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)
    if picture.stat().st_size > LIMIT:
        sys.exit(f"{picture} has {picture.stat().st_size:,} bytes, more than {LIMIT:,}")


def tersor(*words: str | Path, language: str = "en") -> None:
    subprocess.run(
        [sys.executable, "-m", "tersor.cli", *map(str, words)],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TERSOR_LANG": language},
    )  # fmt: skip


def pages(work: Path, language: str) -> None:
    """The report of the first run and the comparison of both, as they are read in a language."""
    runs = [work / name for name in RUNS]
    with speaking(language):
        (work / "report.html").write_text(html(read_report(runs[0])), encoding="utf8")
    tersor("compare", *runs, "--html", work / "compare.html", language=language)


def main(docs: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in RUNS:
            tersor("demo", "--out", work / name, "--recipe", name)
        for language in ("en", "zh"):
            pages(work, language)
            for name, (page, height) in PICTURES.items():
                picture = docs.resolve() / language / "images" / name
                picture.parent.mkdir(parents=True, exist_ok=True)
                shoot(work / page, picture, height)
                print(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "docs")
