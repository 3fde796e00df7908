"""Where output may be written: every output folder and file is checked here, before the run that creates it."""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersor.arguments import path_of
from tersor.checkpoints.manifest import named_files, not_ours, replace_folder
from tersor.errors import SavedFolderError
from tersor.files import write_text, writing

_log = logging.getLogger(__name__)

# Bytes that must be free for a file.
_OF_A_FILE = 2**16
# Bytes of the longest name that file systems accept, and of a path that leaves room for file names in a folder.
_LONGEST_NAME, _LONGEST_PATH = 255, 3800
# Folders of the kernel, and the folders in them that may contain files.
_KERNEL, _FOR_FILES = ("/proc", "/sys", "/dev"), ("/dev/shm", "/dev/mqueue")  # noqa: S108 - nothing is written there by itself


def check_folder(out: Any, force: Any = False, sources: Sequence[Path] = (), size: int = 0) -> Path:
    """The path of an output folder, if it can be written there; nothing is changed.

    With ``force`` a folder is replaced if it is empty or contains only what Tersor wrote, according to its manifest.
    Never replaced are a link, a mount point, the working or home folder, and a folder that contains, is or lies in a
    source.

    Args:
        sources: the inputs: a task's file or a model's folder.
        size: bytes to write, as far as they are known.

    Raises:
        SavedFolderError: naming the path, why it is refused, and the remedy.
    """
    with _checked(out, "folder", force) as (path, whole):
        for source in (Path(s).resolve() for s in sources):
            if source.is_relative_to(whole):
                kind = "model" if source.is_dir() else "task"
                raise SavedFolderError(f"{path} is or holds the {kind} {source} itself; choose another folder")
            if source.is_dir() and whole.is_relative_to(source):
                raise SavedFolderError(f"{path} lies in the folder of the model {source}; choose one outside")
        _check_link(path, "folder")
        if reason := _protected(whole):
            raise SavedFolderError(f"{path} is {reason}, which is never replaced: choose a folder of its own")
        if whole.exists():
            if not whole.is_dir():
                raise SavedFolderError(f"{path} is a file, not a folder: choose another name")
            if not force:
                raise SavedFolderError(
                    f"{path} exists: choose another folder, or overwrite what Tersor wrote there with --force "
                    "(force=True)"
                )
            if reason := not_ours(whole):
                raise SavedFolderError(f"{path} is not replaced, also with --force (force=True), since {reason}")
        _check_place(path, whole, size)
    return path


def check_file(out: Any, ending: str, force: Any = True, sources: Sequence[Path] = ()) -> Path:
    """The path of an output file, if it can be written there; nothing is changed.

    An existing file is replaced only with ``force``, and if its name has the same ``ending``, such as ``.html``; never
    one of ``sources``, a file of a folder that Tersor wrote, a link, a device or a pipe.

    Raises:
        SavedFolderError: naming the path, why it is refused, and the remedy.
    """
    with _checked(out, "file", force) as (path, whole):
        _check_link(path, "file")
        if whole.exists():
            if whole.is_dir():
                raise SavedFolderError(f"{path} is a folder: give the name of a file")
            if not stat.S_ISREG(whole.stat().st_mode):
                raise SavedFolderError(f"{path} is a device or a pipe: give the name of a file")
            if any(s.exists() and s.samefile(whole) for s in map(Path, sources)):
                raise SavedFolderError(f"{path} is one of the files that are read: choose another name")
            if not force:
                raise SavedFolderError(f"{path} exists: choose another name, or overwrite it with --force (force=True)")
            if whole.suffix.lower() != ending:
                raise SavedFolderError(f"{path} exists and is no {ending} file: choose another name")
            if not os.access(whole, os.W_OK):
                raise SavedFolderError(f"{path} exists and may not be written: choose another name")
        if whole.name in named_files(whole.parent):
            raise SavedFolderError(f"{path} belongs to what Tersor saved in {whole.parent}: choose another name")
        _check_place(path, whole, _OF_A_FILE)
    return path


def write_page(path: Path, text: str) -> Path:
    """Write a .html file atomically; raises SavedFolderError if it cannot be written."""
    return write_text(check_file(path, ".html"), text)


def put_in_place(new: Path, out: Path, force: bool, sources: Sequence[Path] = ()) -> None:
    """Move ``new``, in the working folder of ``out``, to ``out``, which somebody may have created meanwhile.

    Raises:
        SavedFolderError: as ``check_folder``; ``out`` is left as it is.
    """
    check_folder(out, force, sources)
    replace_folder(new, out)
    _log.info("written: %s", out)


@contextmanager
def _checked(out: Any, kind: str, force: Any) -> Iterator[tuple[Path, Path]]:
    """The path of an output, and its place without links; errors of the system inside become Tersor errors."""
    path = path_of(kind, out, SavedFolderError)
    if not isinstance(force, bool):
        raise SavedFolderError(f"force is {force!r:.80}: it must be True or False")
    _check_length(path)
    with writing(path):
        yield path, Path(os.path.realpath(path))


def _check_link(path: Path, kind: str) -> None:
    if path.is_symlink():
        raise SavedFolderError(f"{path} is a symbolic link: give the {kind} that it is to stand for")


def _check_length(path: Path) -> None:
    """Reject a name or path that the system would not accept, since even a query for it fails."""
    if long := next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None):
        raise SavedFolderError(
            f"the name {long[:40]}… in the path is too long: {len(os.fsencode(long))} bytes, {_LONGEST_NAME} at most"
        )
    if (size := len(os.fsencode(path.absolute()))) > _LONGEST_PATH:
        short = f"{str(path)[:120]}…{str(path)[-120:]}"
        raise SavedFolderError(f"the path {short} is too long: {size} bytes, {_LONGEST_PATH} at most")


def _protected(folder: Path) -> str | None:
    """The kind of a folder that must never be replaced, or None."""
    working, home = Path.cwd(), Path(os.path.expanduser("~")).resolve()
    if folder.parent == folder:
        return "the root of the file system"
    if os.path.ismount(folder) or str(folder).replace(" ", "\\040") in _mounts():
        return "a mount point"
    if working.is_relative_to(folder):
        return "the working folder" if working == folder else "a parent of the working folder"
    if home.is_relative_to(folder):
        return "the home folder" if home == folder else "a parent of the home folder"
    return None


def _mounts() -> set[str]:
    """The mount points listed by the kernel, including bind mounts within the same file system."""
    try:
        return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf8").splitlines()}
    except (OSError, ValueError, IndexError):
        return set()


def _check_place(path: Path, whole: Path, size: int) -> None:
    """Check that the parent exists or can be created, accepts the name, is writable, and has enough space.

    Raises:
        SavedFolderError: naming the reason.
    """
    place = next(p for p in path.absolute().parents if p.exists() or p.is_symlink())
    if not place.is_dir():
        raise SavedFolderError(
            f"{path} cannot be written (Not a directory): {place} is no folder; choose another place"
        )
    kernel = any(whole.is_relative_to(k) for k in _KERNEL) and not any(whole.is_relative_to(f) for f in _FOR_FILES)
    if kernel:
        raise SavedFolderError(f"{path} lies in a folder of the system's devices and processes: choose another place")
    with tempfile.TemporaryFile(dir=place):  # permissions alone do not reveal read-only file systems
        pass
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < size:
        raise SavedFolderError(
            f"{path} needs {size / 1e6:.1f} MB, and {place} has {usage.free / 1e6:.1f} MB free: make room, or choose "
            "another place"
        )
