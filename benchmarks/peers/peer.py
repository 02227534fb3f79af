"""Start a peer, give it orders, and write down what it took beside ours."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.speed.timing import ROOT, Timing, figure, peak_memory
from common.config import user_error


@dataclass(frozen=True)
class Origin:
    """The paper that a peer is measured for, its repository, and a file by which a checkout is known."""

    paper: str
    repository: str
    file: str
    runs_on_gpu: bool = False


ORIGINS = {
    "nm512": Origin("dreamerv3", "NM512/dreamerv3-torch", "dreamer.py"),
    "danijar": Origin("dreamerv3", "danijar/dreamerv3", "dreamerv3/rssm.py"),
    "mctx": Origin("muzero", "google-deepmind/mctx", "mctx/_src/search.py"),
    "lightzero": Origin("muzero", "opendilab/LightZero", "lzero/mcts/ctree/ctree_muzero/mz_tree.pyx"),
    "facebookresearch": Origin("ijepa", "facebookresearch/ijepa", "src/train.py", runs_on_gpu=True),
    "jepa": Origin("vjepa", "facebookresearch/jepa", "app/vjepa/train.py", runs_on_gpu=True),
    "eloialonso": Origin("diamond", "eloialonso/diamond", "src/envs/world_model_env.py", runs_on_gpu=True),
}


def checkouts(words: Sequence[str], papers: Sequence[str]) -> dict[str, Path]:
    """The folder of each peer from NAME=DIR; one line and exit 2 if one is not known, there, or of these papers."""
    found = {}
    for word in words:
        name, _, folder = word.partition("=")
        if name not in ORIGINS or not folder:
            user_error(f"--peer {word}: expected NAME=DIR with a name of {', '.join(ORIGINS)}")
        origin = ORIGINS[name]
        if origin.paper not in papers:
            user_error(f"--peer {name} is measured with {origin.paper}, which is not among {', '.join(papers)}")
        if not (Path(folder) / origin.file).is_file():
            user_error(f"--peer {word}: no checkout of {origin.repository} there, {origin.file} is missing")
        found[name] = Path(folder).resolve()
    return found


class Peer:
    """A peer's learner that waits for orders. facts: its form, its number of parameters, and in what it is unlike ours.

    title: repository and commit.
    """

    def __init__(self, name: str, title: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.name, self.title, self.process, self.errors = name, title, process, errors
        self.facts: Mapping[str, Any] = {}

    @property
    def memory(self) -> float:
        """GiB that its process has held at most."""
        return peak_memory(self.process.pid)

    def update(self) -> float:
        """Seconds of one update, by the peer's own clock."""
        return float(self.ask({}))

    def ask(self, order: Mapping[str, Any]) -> Any:
        """The answer to an order; one line and exit 2 if the peer has stopped."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            user_error(f"--peer {self.name}: it stopped with exit code {code}: {last}")
        return json.loads(answer)


@contextmanager
def started(name: str, checkout: Path, order: Mapping[str, Any]) -> Iterator[Peer]:
    """A peer built from its checkout in a process of its own, which ends with the block.

    order: what its glue needs beyond checkout and threads. The interpreter is that of the checkout's .venv, if it has
    one.
    """
    python = checkout / ".venv" / "bin" / "python"
    command = [str(python) if python.is_file() else sys.executable, "-m", f"benchmarks.peers.{name}"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        try:
            peer = Peer(name, _title(name, checkout), process, errors)
            peer.facts = peer.ask({"checkout": str(checkout), "threads": torch.get_num_threads(), **order})
            yield peer
        finally:
            process.kill()


def compared(
    name: str,
    unit: str,
    ours: Timing,
    theirs: Timing,
    peer: Peer,
    parameters: int,
    memory: float,
    amount: float = 0.0,
    peer_memory: float | None = None,
) -> dict[str, Any]:
    """A measurement of a speed record: ours with so many parameters and GiB of memory, beside those of a running peer.

    `amount` as in `figure`; without `peer_memory`, it is that of the peer's process.
    """
    other = peer.memory if peer_memory is None else peer_memory
    facts, there, threads = peer.facts, figure(name, unit, theirs, amount)["value"], torch.get_num_threads()
    return figure(
        name,
        unit,
        ours,
        amount,
        peer=f"{peer.title}, {facts['form']}: {there} {unit}",
        ratio=round(theirs.median / ours.median, 2),
        note=f"in turns, {threads} thread{'s' if threads != 1 else ''} each; {parameters:,} parameters, the peer "
        f"{facts['parameters']:,}; peak memory {memory:.2f} GiB, the peer {other:.2f}; "
        f"the peer {facts['unlike']}",
    )


def _title(name: str, checkout: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return f"{ORIGINS[name].repository} {done.stdout.strip() or 'without commit'}"
