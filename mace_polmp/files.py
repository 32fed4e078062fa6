"""Files that appear whole or not at all, folders that one process writes to, contents compared."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mace_polmp.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside a file, which takes its place when the block ends without an error.

    The content is on the disk before the name is: a crash or power cut leaves the old file or the
    new one. The new file has the permissions that the umask gives.

    Raises:
        InputError: it cannot be written, for instance because the disk is full; the old file
            stays what it was.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    is_device = path.exists() and not path.is_file() and not path.is_dir()
    folder = Path(tempfile.gettempdir()) if is_device else path.parent
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        if is_device:  # such as /dev/null, which must stay what it is
            with open(temporary, "rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            return
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: as replacing.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_torch(path: str | Path, content: Any, **named: Any) -> None:
    """Write what torch.save writes, whole or not at all.

    Args:
        path: of the file.
        content: as torch.save takes it.
        **named: of torch.save.

    Raises:
        InputError: as replacing. (To a full disk torch itself writes with another error.)
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, **named)
    write_bytes(path, buffer.getvalue())


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it.

    Raises:
        InputError: it cannot be made, for instance because a file has its name.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be made ({error.strerror})") from error
    return path


def unwritable(path: str | Path, error: OSError) -> str:
    """What to tell a user whose file cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return f"{path}: cannot be written: the disk is full; free some space, then run it again"
    return f"{path}: cannot be written ({reason})"


@contextmanager
def locked(path: str | Path, what: str) -> Iterator[None]:
    """Hold a lock file; it is let go when the process ends, however it ends.

    Args:
        path: of the lock file; it stays.
        what: what the lock is for, in the message.

    Raises:
        InputError: another process holds it, or the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        file = open(path, "a+")  # noqa: SIM115 - closed below, after the lock
    except OSError as error:
        raise InputError(unwritable(path, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InputError(
                f"{what} is in use by another process (number {owner}, lock file {path}); wait "
                "until it has ended, or write to another place"
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        with suppress(OSError):  # who holds it is a help to others, no more
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        yield


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
