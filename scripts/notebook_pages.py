"""A hook of mkdocs: every notebook becomes a page, with the outputs that are stored in it; nothing is run."""

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

SUFFIX = ".ipynb"
DOWNLOAD = {"en": "Download this notebook", "zh": "下载本教程的 Notebook"}


@event_priority(100)  # before languages are told apart
def on_files(files: Files, config: Any) -> Files:
    """The files, with a page beside each notebook, which itself can be downloaded."""
    for file in [file for file in files if file.src_uri.endswith(SUFFIX)]:
        page = str(Path(file.src_uri).with_suffix(".md"))
        files.append(File(page, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: Any) -> str | None:
    """The Markdown of a notebook; None for pages that are files."""
    notebook = Path(config.docs_dir, page.file.src_uri).with_suffix(SUFFIX)
    if not notebook.is_file():
        return None
    return MarkdownExporter().from_filename(str(notebook))[0]


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links to notebooks, which GitHub shows, lead to their pages; a page of a notebook ends with its file."""
    text = re.sub(r"(\]\([\w./-]+)\.ipynb\)", r"\1.md)", markdown)
    uri = Path(page.file.src_uri)
    if not Path(config.docs_dir, uri).with_suffix(SUFFIX).is_file():
        return text
    return f"{text}\n\n[{DOWNLOAD[uri.parts[0]]}]({uri.stem}{SUFFIX})\n"
