"""Where a number comes from: device, versions of libraries, revision of the code, the command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def describe_device(device: str) -> str:
    """GPU name, or CPU model with the number of torch threads."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(torch.device(device)))
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads != 1 else ''}"


def package_versions(paper: str) -> dict[str, str]:
    """Installed versions of the libraries that a paper asks for in pyproject.toml; those not installed are left out."""
    versions = {}
    for name in sorted(_requirements(paper)):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str:
    """Short commit of the code, "-dirty" if the Python files differ from it.

    Outside a checkout what the environment variable REVISION says, or "unknown".
    """
    outside = os.environ.get("REVISION", "") or "unknown"
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        status = ["git", "status", "--porcelain", "--", "*.py"]
        changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return outside
    if commit.returncode != 0 or not (ROOT / ".git").exists():
        return outside
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def command_line() -> str:
    """The command as a reader would type it, without the path of the interpreter and without its run folder."""
    words = [word for word in sys.orig_argv[1:] if word != "-u"]
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    launcher = ["python"] if ranks == "1" else ["torchrun", f"--nproc-per-node={ranks}"]
    return without_place(shlex.join(launcher + words))


def without_place(command: str) -> str:
    """A command without its --run: where a run folder lies belongs to the machine and not to the record."""
    kept = [
        word
        for before, word in pairwise(["", *shlex.split(command)])
        if before != "--run" and word != "--run" and not word.startswith("--run=")
    ]
    return shlex.join(kept)


def _requirements(paper: str) -> set[str]:
    """Names of what the suite and this paper need, and of what is installed beside it without its own needs."""
    file = ROOT / "pyproject.toml"
    if not file.is_file():
        return {"torch", "numpy"}
    content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    project, beside = content["project"], content.get("tool", {}).get("recorded", {})
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"].get(paper, []),
        *beside.get(paper, []),
    ]
    return {re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower() for requirement in wanted}
