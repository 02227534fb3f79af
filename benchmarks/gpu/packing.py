"""Pack what a stretch needs beside the checkout: runs to go on with or to take from, small packages, the revision."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks import suites
from benchmarks.gpu import manifest, parcel
from benchmarks.gpu.manifest import EVERYWHERE, LEFT_OUT, PYTHON, ROOT, Places, jobs_of
from benchmarks.gpu.parcel import MEBI, ParcelError
from benchmarks.gpu.travel import progress, recorded, world
from benchmarks.runner import Job
from benchmarks.steps import Package, Step
from common.program import RunError
from common.provenance import git_revision

MOST_IN = 60 * MEBI  # the checkout counts among what goes in
# The platforms of Linux whose wheels any machine of these years runs; pip takes each by its exact name.
PLATFORMS = tuple(f"manylinux{name}" for name in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1"))


def pack(places: Places, runs: Path, is_dry: bool, only: Sequence[str] = (), python: str = PYTHON) -> None:
    """One parcel: unfinished runs, the finished ones that steps take from, small packages, the revision.

    only: kinds or labels of the steps that it is for; without them all. python: version on the machine with the GPU,
    for which compiled packages are fetched. What an earlier stretch has compiled comes along if there is room. Raises
    ParcelError if all else and the checkout are too large together.
    """
    contents: dict[str, bytes] = {}
    labels, needs, brings = [], dict[str, None](), dict[Package, None]()
    for step in manifest.chosen(manifest.plan(suites.load(), is_dry), only):
        try:
            if step.kind == "training":
                contents |= _carried(step, jobs_of(step, is_dry), runs)
            for package in step.brings:
                contents |= _brought(package, python, is_dry)
        except RunError as error:
            print(f"{step.label}: {LEFT_OUT}: {error}")
            continue
        labels.append(step.label)
        needs |= dict.fromkeys(step.needs)
        brings |= dict.fromkeys(step.brings)
    for name in needs:
        contents |= _package(name)
    # A wheel for another Python than this one can be tried there alone; what imports it is tried with the one of here.
    foreign = [package.name for package in brings if package.is_compiled and (is_dry or python != PYTHON)]
    site = {name: data for name, data in contents.items() if name.startswith("site/") and not _is_of(name, foreign)}
    modules = [package.module for package in brings if package.name not in foreign]
    _check_packages(site, modules, (*needs, *foreign))
    facts = {"revision": git_revision(), "steps": labels, "is_dry": is_dry, "python": python}
    contents["facts.json"] = json.dumps(facts).encode()
    most = MOST_IN - (tree := _checkout())
    cache = {f"cache/{name}": path.read_bytes() for name, path in parcel.files_below(places.cache).items()}
    try:
        taken = parcel.write(places.pack, contents | cache, most)
    except ParcelError:
        if not cache:
            raise
        taken = parcel.write(places.pack, contents, most)
        print(f"left out, for want of room: {places.cache}; its kernels are compiled again")
    words = f"{parcel.size(taken)} of {parcel.size(MOST_IN)}, the checkout has {parcel.size(tree)}"
    print(f"packed: {places.pack}, {len(labels)} steps, {words}")


def _carried(step: Step, jobs: Sequence[Job], runs: Path) -> dict[str, bytes]:
    """The runs of a training step as far as they have come, and what they take from others.

    Raises RunError if there is nothing to do or nothing to take.
    """
    if all((runs / job.paper / job.name / "record.json").is_file() for job in jobs):
        raise RunError("its run has a record" if len(jobs) == 1 else "its runs have records")
    contents: dict[str, bytes] = {}
    for source in {runs / job.paper / job.takes[1] for job in jobs if job.takes is not None}:
        contents |= {f"runs/{step.paper}/{source.name}/{name}": data for name, data in world(source, step).items()}
    if step.recorded_by is not None:
        contents |= recorded(step, jobs[0], runs)
    for own in (runs / job.paper / job.name for job in jobs):
        if own.is_dir() and not step.is_tested:
            contents |= {
                f"runs/{step.paper}/{own.name}/{name}": data for name, data in progress(own, step.shares).items()
            }
    return contents


def _package(name: str) -> dict[str, bytes]:
    """The installed files of a package in plain Python; one that is compiled must be there already, so it is named."""
    for distribution in sorted(set(metadata.packages_distributions().get(name, ()))):
        files = [file for file in metadata.files(distribution) or () if ".." not in file.parts]
        files = [file for file in files if file.suffix != ".pyc" and file.name not in ("direct_url.json", "RECORD")]
        if any(file.suffix in (".so", ".pyd", ".dylib") for file in files):
            print(f"{name}: compiled, so it must be there already")
            return {}
        return {f"site/{file.as_posix()}": Path(str(file.locate())).read_bytes() for file in files}
    print(f"{name}: not installed here, so it must be there already")
    return {}


def _brought(package: Package, python: str, is_dry: bool) -> dict[str, bytes]:
    """The files of a package that travels, without what nothing reads; dry, of a compiled one the one here serves.

    Raises RunError if it is not to be had.
    """
    if package.name not in metadata.packages_distributions():
        raise RunError(f"{package.name} is not installed here")
    if package.is_compiled and is_dry:
        print(f"{package.name}: compiled, so a dry stretch takes the one that is there")
        return {}
    files = _wheel(package.name, python) if package.is_compiled else _package(package.name)
    return {name: data for name, data in files.items() if not name.removeprefix("site/").startswith(package.without)}


def _wheel(name: str, python: str) -> dict[str, bytes]:
    """The files of a compiled package for another Python on Linux, in the version that is installed here.

    Raises RunError if there is no such wheel to be had.
    """
    words = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    words += [f"--platform={one}_{platform.machine()}" for one in PLATFORMS]
    with tempfile.TemporaryDirectory() as scratch:
        words += ["--python-version", python, "--dest", scratch, f"{name}=={metadata.version(name)}"]
        command = [sys.executable, "-m", "pip", "download", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr.split("ERROR: ")[-1].splitlines() or ["pip said nothing"])[0]
            raise RunError(f"{name} for Python {python} could not be fetched: {reason}")
        with zipfile.ZipFile(found[0]) as wheel:
            entries = [entry for entry in wheel.infolist() if not entry.is_dir()]
            kept = [entry.filename for entry in entries if not entry.filename.endswith(".dist-info/RECORD")]
            return {f"site/{entry}": wheel.read(entry) for entry in kept}


# Imports what was packed where there is nothing but the standard library and EVERYWHERE.
BARE = """
import importlib, sys
site, modules, there = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
tops = {module.partition(".")[0] for module in modules}
class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = (*sys.stdlib_module_names, *there, *tops)
        if top not in known and not top.startswith("_sysconfigdata"):  # of the standard library, but not listed
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
sys.path.insert(0, site)
for module in modules:
    found = importlib.import_module(module).__file__
    if not found.startswith(site):
        raise ImportError(f"{module} came from {found}")
"""


def _is_of(name: str, packages: Sequence[str]) -> bool:
    """Whether a file that was packed belongs to one of the packages."""
    top = name.removeprefix("site/").split("/")[0]
    return any(top == package or top.startswith(f"{package}-") for package in packages)


def _check_packages(contents: Mapping[str, bytes], modules: Sequence[str], there: Sequence[str]) -> None:
    """Raise ParcelError if a package that was packed cannot be imported where there is little else.

    modules: what must be importable beside the packages themselves. there: what the machine is expected to have.
    """
    tops = {name.split("/")[1] for name in contents if name.count("/") > 1 and ".dist-info/" not in name}
    names = sorted(tops | set(modules))
    if not names:
        return
    with tempfile.TemporaryDirectory() as scratch:
        parcel.place(contents, Path(scratch))
        words = [f"{scratch}/site", ",".join(names), ",".join((*EVERYWHERE, *there))]
        done = subprocess.run(
            [sys.executable, "-I", "-c", BARE, *words],
            env={**os.environ, "MUJOCO_GL": "disabled"},  # a simulator that is not to draw needs no library for it
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise ParcelError(f"{', '.join(names)}: not importable as packed: {done.stderr.splitlines()[-1]}")


def _checkout() -> int:
    """Bytes of the files that git tracks, 0 outside a checkout: there it has travelled already."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    return sum(path.stat().st_size for path in paths if path.is_file())
