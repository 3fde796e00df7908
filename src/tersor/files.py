"""Atomic file writes, output folders locked by one run at a time, and temporary folders."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tersor.errors import SavedFolderError, TersorError

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REMEDIES = {
    **dict.fromkeys(_FULL, "make room, or choose another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that may be written"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "choose another name"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
_LOCK = "lock"
# The longest name, in bytes, that still leaves room for another extension.
_LONG = 240
# In a working folder: the previous output, while the new one is moved into place.
OLD = "old"
# Everything that runs write into a working folder: nothing else is ever removed with it.
_OWN = re.compile(
    r"lock|job\.(json|part)|block-\d{5,}\.(safetensors|json|part)|[a-z]+-\d+\.(bin|part)|\..+\.part|out|old|prune-\d+"
    r"|trial-[0-9a-f]+|state"
)
_OWN_FOLDERS = re.compile(r"out|old|prune-\d+|trial-[0-9a-f]+|state")


@contextmanager
def writing(path: Path, kind: type[TersorError] = SavedFolderError, remedy: str = "") -> Iterator[None]:
    """Turn whatever keeps ``path`` from being written into a Tersor error with the path, the reason and the remedy.

    Raises:
        TersorError: of this ``kind``: the disk is full, the folder read-only, the name too long.

    >>> with writing(Path("small/report.json")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    tersor.errors.SavedFolderError: small/report.json cannot be written (No space left on device): make room, or choose
    another disk
    """
    try:
        yield
    except Exception as error:
        found = _of_system(error)
        if found is None:
            raise
        number, reason = found
        remedy = remedy or _REMEDIES.get(number, "choose another place")
        ours = kind(f"{path} cannot be written ({reason}): {remedy}")
        ours.system = found
        raise ours from error


def disk_full(error: BaseException) -> bool:
    """Whether an error was caused by a full disk."""
    found = _of_system(error)
    return found is not None and found[0] in _FULL


def _of_system(error: BaseException) -> tuple[int, str] | None:
    """Errno and message of the system; safetensors has them only in its text, a Tersor error in ``system``."""
    if isinstance(error, TersorError):
        return error.system
    if isinstance(error, OSError):
        return error.errno or errno.EIO, error.strerror or str(error)
    found = re.search(r"\(os error (\d+)\)", str(error))
    return (int(found.group(1)), os.strerror(int(found.group(1)))) if found else None


@contextmanager
def whole_file(path: Path, kind: type[TersorError] = SavedFolderError) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to, renamed to ``path`` at the end; on any error nothing is left behind.

    Parent folders are created. A killed run leaves ``.NAME.part``, which the next run takes over.

    Raises:
        TersorError: of this ``kind``: it cannot be written, or another run is writing it.
    """
    part = beside(path, "part")
    with _parents(path, kind), writing(path, kind):
        if path.exists() and not path.is_file():
            raise kind(f"{path} is a folder or a device, not a file: choose another name")
        with part.open("ab") as lock:
            if not _lock(lock.fileno()):
                raise kind(f"another run is writing {path}: wait for it, or choose another name")
            try:
                yield part
                os.replace(part, path)
                _log.info("written: %s", path)
            finally:
                part.unlink(missing_ok=True)


def write_text(path: Path, text: str, kind: type[TersorError] = SavedFolderError) -> Path:
    """Write a UTF-8 text as ``whole_file`` does, and return its path."""
    with whole_file(path, kind) as part:
        part.write_text(text, encoding="utf-8")
    return path


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, whose files are moved into it at the end; on any error nothing is left."""
    part = folder / ".part"
    with writing(folder):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            for path in sorted(part.iterdir()):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def parts_of(out: Path) -> Path:
    """The working folder of an output folder: ``.NAME.partial`` beside it."""
    return beside(out, "partial")


def finished_blocks(out: Path) -> int:
    """How many blocks an interrupted run of an output folder has finished."""
    return sum(1 for _ in parts_of(out).glob("block-*.json"))


def beside(path: Path, ending: str) -> Path:
    """The hidden path of something that belongs to ``path``, in the same folder; a long name is replaced by its digest.

    >>> beside(Path("a/small"), "partial").as_posix()
    'a/.small.partial'
    """
    name, encoded = path.name, os.fsencode(path.name)
    if len(encoded) > _LONG:
        name = hashlib.sha256(encoded).hexdigest()[:32]
    return path.parent / f".{name}.{ending}"


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """The working folder of ``out``, locked, so nobody else writes ``out``. It is removed at the end if empty.

    Raises:
        SavedFolderError: another run holds it, it cannot be created, or it contains something that no run wrote.
    """
    out = out.absolute()
    folder = parts_of(out)
    with _parents(out):
        with writing(out):
            _check_own(folder)
            lock = _locked_file(folder)
        if lock is None:
            raise SavedFolderError(f"another run is writing {out}: wait for it, or choose another folder")
        try:
            _finish_replacing(folder, out)
            yield folder
        finally:
            with suppress(OSError):
                if os.listdir(folder) == [_LOCK]:
                    shutil.rmtree(folder)
            os.close(lock)


def _check_own(folder: Path) -> None:
    """Refuse a working folder that contains anything no run wrote, since a run finally removes it."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise SavedFolderError(f"{folder}, where parts of the run are kept, is a link or a file: remove it yourself")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        folders = _OWN_FOLDERS.fullmatch(path.name) is not None
        if path.is_symlink() or not _OWN.fullmatch(path.name) or path.is_dir() != folders:
            raise SavedFolderError(
                f"{folder}, where parts of the run are kept, holds {path.name}, which no run wrote: move it away, or "
                "choose another folder"
            )


def _finish_replacing(folder: Path, out: Path) -> None:
    """Restore what a run killed within ``manifest.replace_folder`` had moved away; drop the rest."""
    old = folder / OLD
    if old.exists() and not out.exists():
        os.replace(old, out)
    for left in (old, folder / "out"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder; those of killed processes are removed first.

    Raises:
        SavedFolderError: none can be created, or it is full.
    """
    named = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108  (named in an error only)
    with writing(named, remedy="set TMPDIR to a folder that has room and may be written"):
        root = Path(tempfile.gettempdir())
        _sweep(root)
        folder = Path(tempfile.mkdtemp(prefix="tersor-", dir=root))
        # Renamed only once it is locked, so that nobody mistakes it for one of a killed process.
        lock = os.open(folder / "new", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(lock)
            os.replace(folder / "new", folder / _LOCK)
            (folder / "files").mkdir()
            yield folder / "files"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _sweep(root: Path) -> None:
    for path in root.glob(f"tersor-*/{_LOCK}"):
        with suppress(OSError):
            about = path.parent.lstat()
            if about.st_uid != os.getuid() or path.parent.is_symlink():
                continue
            lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(lock):
                    shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(lock)


@contextmanager
def _parents(path: Path, kind: type[TersorError] = SavedFolderError) -> Iterator[None]:
    """Create the parent folders of ``path``, and remove those created if what follows fails."""
    with writing(path, kind):
        missing = [folder for folder in path.absolute().parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def exclusively(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold the lock of a file, which is created; wait, but not for ever, while another process or thread holds it."""
    file, end = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), time.monotonic() + seconds
    try:
        while not _lock(file):
            if time.monotonic() > end:
                _log.warning("%s is still held by another process; going on beside it", path)
                break
            time.sleep(0.05)
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file, too
        os.close(file)


def _locked_file(folder: Path) -> int | None:
    """Create and lock a file in ``folder``; None if somebody else holds the lock."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        if not _lock(lock):
            os.close(lock)
            return None
        try:
            if os.stat(folder / _LOCK).st_ino == os.fstat(lock).st_ino:
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
