"""The bytes of the files that must be shipped."""

from pathlib import Path

from tersor.errors import SavedFolderError

# Not needed to run the model.
NOT_SHIPPED = frozenset({"report.json", "report.html"})


def shipped_files(folder: Path | str) -> dict[str, int]:
    """The bytes of every file that must be shipped, by its path within the folder.

    Raises SavedFolderError if there is none.
    """
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in NOT_SHIPPED
    }
    if not files:
        raise SavedFolderError(f"{folder}: no file to ship: save the model there first")
    return files


def shipped_bytes(folder: Path | str) -> int:
    """The total bytes of the files that must be shipped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "weights.bin").write_bytes(bytes(100))
    ...     _ = Path(folder, "report.json").write_text("{}")
    ...     shipped_bytes(folder)
    100
    """
    return sum(shipped_files(folder).values())
