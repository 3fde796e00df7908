"""A hook of mkdocs: every notebook becomes a page, with the outputs that are stored in it; nothing is run."""

from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

SUFFIX = ".ipynb"
DOWNLOAD = {"en": "Download this notebook", "zh": "下载本教程的笔记本"}


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
    text, _ = MarkdownExporter().from_filename(str(notebook))
    language = Path(page.file.src_uri).parts[0]
    return f"{text}\n\n[{DOWNLOAD[language]}]({notebook.name})\n"
