"""Checked files, reserved space and how a program ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import files
from common.files import read_checked, reserve, write_checked
from common.program import RunError, program


def test_a_flip_anywhere_a_cut_and_another_identity_are_seen(tmp_path):
    path = tmp_path / "shard"
    write_checked(path, b"some latents", "seed 0 shard 3")
    assert read_checked(path, "seed 0 shard 3") == b"some latents"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            read_checked(path, "seed 0 shard 3")
    for cut in (whole[:-1], whole[:5], b""):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=str(path)):
            read_checked(path, "seed 0 shard 3")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="another run"):
        read_checked(path, "seed 0 shard 4")


def test_a_pipe_that_nobody_writes_to_is_no_file(tmp_path):
    """Its reading would never end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe or a device, no file"):
        read_checked(tmp_path / "pipe", "seed 0")
    for other, error in ((tmp_path, IsADirectoryError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            files.check_is_file(other)


def test_space_is_reserved_or_the_file_is_not_there(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    reserve(path, 1000)
    assert path.stat().st_size == 1000
    path.write_bytes(b"x" * 1000)
    reserve(path, 2000)
    assert path.read_bytes() == b"x" * 1000 + bytes(1000)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as error:
        reserve(tmp_path / "more", 10)
    assert error.value.filename == str(tmp_path / "more")
    assert not (tmp_path / "more").exists()
    assert files.disk_is_full(error.value)


def fail(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint"),
        (RunError("no space for\nthe last checkpoint"), 1, "error: no space for the last checkpoint"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "error: a/b: No space left on device"),
        (FileNotFoundError(2, "No such file or directory", "c"), 1, "error: c: No such file or directory"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(error, code, line, capsys):
    with pytest.raises(SystemExit) as stop:
        program(fail(error))
    assert stop.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_a_fault_of_our_own_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        program(fail(ZeroDivisionError()))


def test_a_reader_that_has_gone_is_no_traceback():
    code = "from common.program import program; program(lambda: [print('x' * 1000) for _ in range(1000)] and None)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait()
