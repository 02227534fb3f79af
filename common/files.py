"""Files that survive a kill, a full disk and damage: atomic writes, checked contents, a lock on a folder.

A checked file ends with a line of its own that holds the SHA-256 of the content and of the *identity* it was written
under, words such as "seed 0 shard 3": so neither a flipped byte nor a file that belongs elsewhere passes for it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
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


def check_is_file(path: Path | str) -> None:
    """Raises OSError for what cannot be read as a file: nothing there, a folder, or a pipe or device, read for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or a device, no file", str(path))


def write_checked(path: Path | str, data: bytes, identity: str) -> None:
    """`atomic_write` of `data` and its checksum; `read_checked` asks for the same identity."""
    atomic_write(path, data + _tail(data, identity))


def read_checked(path: Path | str, identity: str) -> bytes:
    """What `write_checked` was given. Raises ValueError naming the path if any byte or the identity differs."""
    check_is_file(path)
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


class GuardedLog:
    """Lines that are only added, and beside them how many bytes there must be, with their SHA-256.

    The sum is written after each line, in place: whatever was promised must stand there unharmed, whatever lies behind
    it was being written when the program was killed. A log of an earlier version has no sum and is taken as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sum_path = path.with_name(f".{path.stem}.sum")
        self._digest = hashlib.sha256()
        self._size = 0

    def check(self) -> bytes:
        """The whole lines. Raises ValueError if what was promised is not there, OSError if there is no file."""
        check_is_file(self.path)
        content = self.path.read_bytes()
        if self.sum_path.is_file():
            words = self.sum_path.read_bytes().split()
            if len(words) != 2 or not words[0].isdigit():
                raise ValueError(f"{self.sum_path.name} is damaged")
            promised = content[: int(words[0])]
            if len(promised) < int(words[0]) or hashlib.sha256(promised).hexdigest().encode() != words[1]:
                raise ValueError("lines were lost or changed")
        return content[: content.rfind(b"\n") + 1]

    def open(self) -> None:
        """Go on behind the last whole line: half a line would be glued to the next one. Raises as `check` does."""
        content = self.check()
        os.truncate(self.path, len(content))
        self._begin(content)

    def append(self, line: bytes) -> None:
        """Add a line. Raises OSError, and leaves the log as it was, if there is no space."""
        try:
            with open(self.path, "ab") as file:
                file.write(line)
        except OSError:
            os.truncate(self.path, self._size)
            raise
        self._digest.update(line)
        self._size += len(line)
        self._promise()

    def rewrite(self, content: bytes) -> None:
        """Put other lines in the place of all of them; killed at any moment, the old or the new ones stand there."""
        self.sum_path.unlink(missing_ok=True)
        atomic_write(self.path, content)
        self._begin(content)

    def _begin(self, content: bytes) -> None:
        self._digest, self._size = hashlib.sha256(content), len(content)
        self._promise()

    def _promise(self) -> None:
        # Fixed width, so that one small write replaces the last: a kill leaves the old sum or the new one.
        text = f"{self._size:020d} {self._digest.hexdigest()}\n".encode()
        descriptor = os.open(self.sum_path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, text, 0)
        except OSError as error:
            if not disk_is_full(error):
                raise
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
