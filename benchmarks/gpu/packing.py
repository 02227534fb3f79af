"""Pack what a stretch needs beside the checkout: runs to go on with or to take from, small packages, the revision."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks import suites
from benchmarks.gpu import manifest, parcel
from benchmarks.gpu.manifest import EVERYWHERE, LEFT_OUT, ROOT, Places, jobs_of
from benchmarks.gpu.parcel import MEBI, ParcelError
from benchmarks.gpu.travel import progress, recorded, world
from benchmarks.runner import Job
from benchmarks.steps import Step
from common.program import RunError
from common.provenance import git_revision

MOST_IN = 60 * MEBI  # the checkout counts among what goes in


def pack(places: Places, runs: Path, is_dry: bool, only: Sequence[str] = ()) -> None:
    """One parcel: unfinished runs, the finished ones that steps take from, small packages, the revision.

    only: kinds or labels of the steps that it is for; without them all. What an earlier stretch has compiled comes
    along if there is room. Raises ParcelError if all else and the checkout are too large together.
    """
    contents: dict[str, bytes] = {}
    labels, needs = [], dict[str, None]()
    for step in manifest.chosen(manifest.plan(suites.load(), is_dry), only):
        if step.kind == "training":
            try:
                contents |= _carried(step, jobs_of(step, is_dry), runs)
            except RunError as error:
                print(f"{step.label}: {LEFT_OUT}: {error}")
                continue
        labels.append(step.label)
        needs |= dict.fromkeys(step.needs)
    for name in needs:
        contents |= _package(name)
    _check_packages({name: data for name, data in contents.items() if name.startswith("site/")})
    facts = {"revision": git_revision(), "steps": labels, "is_dry": is_dry}
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


# Imports what was packed where there is nothing but the standard library and EVERYWHERE.
BARE = """
import importlib, sys
site, modules, there = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in there and top not in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
sys.path.insert(0, site)
for module in modules:
    found = importlib.import_module(module).__file__
    if not found.startswith(site):
        raise ImportError(f"{module} came from {found}")
"""


def _check_packages(contents: Mapping[str, bytes]) -> None:
    """Raise ParcelError if a package that was packed cannot be imported in a bare environment."""
    modules = sorted({name.split("/")[1] for name in contents if name.count("/") > 1 and ".dist-info/" not in name})
    if not modules:
        return
    with tempfile.TemporaryDirectory() as scratch:
        parcel.place(contents, Path(scratch))
        words = [f"{scratch}/site", ",".join(modules), ",".join(EVERYWHERE)]
        done = subprocess.run([sys.executable, "-I", "-c", BARE, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParcelError(f"{', '.join(modules)}: not importable as packed: {done.stderr.splitlines()[-1]}")


def _checkout() -> int:
    """Bytes of the files that git tracks, 0 outside a checkout: there it has travelled already."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    return sum(path.stat().st_size for path in paths if path.is_file())
