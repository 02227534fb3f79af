"""Worker processes: they leave the other cores alone, and they end with the program that they work for."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

import cv2

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, also by SIGKILL. Nothing happens but on Linux."""
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not parent.is_alive():  # before the kernel was asked
        os._exit(1)


def begin_worker(_: int) -> None:
    """For a worker of a DataLoader: ends with its parent; OpenCV's threads would be in the way of the other workers."""
    end_with_parent()
    cv2.setNumThreads(0)
