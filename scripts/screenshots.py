"""Write the pictures of README and documentation from a fresh demo: ``python scripts/screenshots.py [FOLDER]``.

FOLDER is docs/en/images by default. Needs Chromium. Each picture is the top of one page in light colours, 1080 pixels wide
and below 150 kB.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1080
LIMIT = 150_000

# picture: the page below the work folder, and the height that is shown
PICTURES = {"report.png": ("demo/report.html", 640), "compare.png": ("compare.html", 600)}


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


def pages(work: Path) -> None:
    """Compress the demo twice and compare the two."""
    tersor = [sys.executable, "-m", "tersor.cli"]
    subprocess.run([*tersor, "demo", "--out", str(work / "demo")], check=True)
    subprocess.run([*tersor, "demo", "--out", str(work / "weights"), "--recipe", "int8-weight"], check=True)
    subprocess.run(
        [*tersor, "compare", str(work / "demo"), str(work / "weights"), "--html", str(work / "compare.html")],
        check=True,
    )


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        pages(Path(work))
        for name, (page, height) in PICTURES.items():
            shoot(Path(work) / page, folder.resolve() / name, height)
            print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "docs/en/images")
