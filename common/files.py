"""Files that survive a kill, a full disk and damage: atomic writes, checked contents, a lock on a folder.

A checked file ends with a line of its own that holds the SHA-256 of the content and of the *identity* it was written
under, words such as "seed 0 shard 3": so neither a flipped byte nor a file that belongs elsewhere passes for it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path

_MARK = b"\n#sha256 "
_TAIL = len(_MARK) + 64


def disk_is_full(error: OSError) -> bool:
    """Whether the write failed for want of space, which costs the write and not the run."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def atomic_write(path: Path | str, data: bytes) -> None:
    """After this the file holds `data` whole; killed at any moment, it holds the old content whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_checked(path: Path | str, data: bytes, identity: str) -> None:
    """`atomic_write` of `data` and its checksum; `read_checked` asks for the same identity."""
    atomic_write(path, data + _tail(data, identity))


def read_checked(path: Path | str, identity: str) -> bytes:
    """What `write_checked` was given. Raises ValueError naming the path if any byte or the identity differs."""
    content = Path(path).read_bytes()
    data, tail = content[:-_TAIL], content[-_TAIL:]
    if not tail.startswith(_MARK):
        raise ValueError(f"{path} is cut short or was not written by this program")
    if tail != _tail(data, identity):
        raise ValueError(f"{path} is damaged or of another run: its checksum differs")
    return data


def reserve(path: Path | str, size: int) -> None:
    """Makes a file of `size` bytes (or lengthens it) whose blocks exist, so that mapped memory never meets a full disk.

    Raises OSError where there is not the space; a file that was not there before is gone again then.
    """
    path = Path(path)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        missing = size - os.fstat(descriptor).st_size
        if missing > 0:
            os.posix_fallocate(descriptor, size - missing, missing)
    except OSError as error:
        if is_new:
            path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


class Lock:
    """A folder in the hands of one process until it ends; workers that it forks do not inherit the lock."""

    def __init__(self, folder: Path, words: str) -> None:
        """`words` are shown to whoever comes second. Raises BlockingIOError with the words of the one who holds it."""
        self.path = folder / ".lock"
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 1000).decode(errors="replace").strip()
            os.close(self._descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise BlockingIOError(error.errno, holder or "another process") from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}: {words}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._descriptor)


def _tail(data: bytes, identity: str) -> bytes:
    digest = hashlib.sha256(data)
    digest.update(identity.encode())
    return _MARK + digest.hexdigest().encode()
