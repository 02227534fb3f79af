"""For tests: a device "cuda" for fake tensors, on a build of torch without CUDA.

Tensors there have a shape, a type and a place, and no values. `fake_cuda.cpp`, built, must be loaded before torch, so a
trace is a process of its own with the library in LD_PRELOAD.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

CUDA = torch.device("cuda", 0)


class Generator(torch.Generator):
    """One of the host that says it is of any device."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, device: Any = "cpu") -> None:
        self.place = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where its numbers are drawn."""
        return self.place


def to_fake(module: nn.Module) -> None:
    """Parameters and buffers move to the GPU, in their layout; inside a FakeTensorMode."""
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
                if name in part._parameters:
                    part._parameters[name] = nn.Parameter(moved, requires_grad=tensor.requires_grad)
                else:
                    part._buffers[name] = moved


def library(folder: Path) -> Path:
    """The built library in `folder`. Raises RuntimeError, with the reason, where it cannot be built or used."""
    if torch.version.cuda is not None:
        raise RuntimeError("this build of torch has CUDA of its own")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        raise RuntimeError("no C++ compiler, or no Linux")
    from torch.utils import cpp_extension

    path = folder / "fake_cuda.so"
    folders = [f"-I{place}" for place in cpp_extension.include_paths()]
    folders += [f"{word}{place}" for place in cpp_extension.library_paths() for word in ("-L", "-Wl,-rpath,")]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    source = Path(__file__).with_suffix(".cpp")
    words = [compiler, "-shared", "-fPIC", "-std=c++20", abi, str(source), *folders, "-lc10", "-ltorch_cpu"]
    built = subprocess.run([*words, "-o", str(path)], capture_output=True, text=True, check=False)
    if built.returncode:
        raise RuntimeError(f"it does not compile here: {(built.stderr.splitlines() or ['no reason given'])[0]}")
    return path
