"""Parcels: zip files whose every content is checked before one byte of it is used. Nothing is unpickled.

The last entry lists the SHA-256 of all others, so that a parcel that was cut short, changed or added to is refused
whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from common.files import atomic_write

MEBI = 2**20
SUMS = "checksums.json"
MOST_BYTES = 1024 * MEBI  # that a parcel may unfold to
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # equal contents make equal parcels


class ParcelError(ValueError):
    """A parcel that is too large, damaged, or wants to lie where it must not; the message is one line."""


def files_below(folder: Path) -> dict[str, Path]:
    """The plain files in a folder, by their name relative to it. Links are left out: what they name may be anything."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in found}


def packed(contents: Mapping[str, bytes]) -> bytes:
    """A parcel of these contents by name."""
    buffer = io.BytesIO()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in {**contents, SUMS: json.dumps(sums).encode()}.items():
            archive.writestr(zipfile.ZipInfo(name, FIXED_TIME), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write(path: Path, contents: Mapping[str, bytes], most: int) -> int:
    """Write a parcel, whole or not at all; the bytes it takes.

    Raises ParcelError with its largest parts if it would take more than `most`.
    """
    data = packed(contents)
    if len(data) > most:
        raise ParcelError(f"{path.name} would take {size(len(data))}, more than {size(most)}; {largest(contents)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return len(data)


def read(path: Path, tops: Sequence[str]) -> dict[str, bytes]:
    """The contents of a parcel by name, each below one of the folders (or equal to one of the files) `tops`.

    Raises ParcelError naming the parcel and what is wrong with it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MOST_BYTES:
                raise ParcelError(f"it unfolds to more than {size(MOST_BYTES)}")
            if len({entry.filename for entry in entries}) < len(entries):
                raise ParcelError("a name stands in it twice")
            for entry in entries:
                _check(entry, tops)
            contents = {entry.filename: archive.read(entry) for entry in entries}
        sums = json.loads(contents.pop(SUMS))
        if {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()} != sums:
            raise ParcelError("its contents are not those that were packed")
    except KeyError:
        raise ParcelError(f"{path}: it has no {SUMS}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ParcelError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    return contents


def place(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write contents that `read` has checked below a folder."""
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / MEBI:.1f} MB"


def largest(contents: Mapping[str, bytes], count: int = 3) -> str:
    """The largest parts of a parcel, by the bytes that they take there, in words."""
    taken = {name: len(packed({name: data})) for name, data in contents.items()}
    names = sorted(taken, key=lambda name: -taken[name])[:count]
    return "largest: " + ", ".join(f"{name} {size(taken[name])}" for name in names)


def _check(entry: zipfile.ZipInfo, tops: Sequence[str]) -> None:
    """Raise ParcelError for a name that leads elsewhere, and for what is no plain file."""
    name = entry.filename
    path = PurePosixPath(name)
    is_below = path.as_posix() == name and not path.is_absolute() and ".." not in path.parts
    if not is_below or "\\" in name or "\0" in name or (path.parts[0] not in tops and name != SUMS):
        raise ParcelError(f"the name {name!r} has no place here")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        raise ParcelError(f"{name!r} is no plain file")
