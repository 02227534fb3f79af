"""Real games side by side: processes hold some of them each. Free of torch, which they need not import.

Commands and observations travel through one pipe per process. A process that dies is noticed and named, and what it
had started goes with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NoReturn

import cv2
import numpy as np

from common.program import RunError
from ha2018.env import Game


@dataclass(frozen=True, eq=False)
class Asked:
    """Requests that the processes are at work on; the answers fill in as they come."""

    answers: list[Any]


class Games:
    """`count` games in `parallel` processes, which start with the first request. Use as a context."""

    def __init__(self, make: Callable[[], Game], count: int, parallel: int) -> None:
        """`make` is called in the processes, so it must be picklable."""
        self.count, self.parallel = count, min(count, parallel)
        self._make = make
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        self._awaited: dict[Connection, deque[tuple[Asked, list[int]]]] = {}  # per process, oldest first

    def __enter__(self) -> Games:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # the process ends when it finds its pipe closed
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # in the middle of a long job
                _kill(process)
        self._pipes, self._processes, self._awaited = [], [], {}

    def reset(self, seeds: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Start episode `seed` in game `index` for each (index, seed); the observations in that order."""
        return self._answers(self._ask([(index, _start, seed) for index, seed in seeds]))

    def step(self, commands: Sequence[tuple[int, Any]]) -> list[tuple[np.ndarray, float, bool]]:
        """One step in game `index` with `command` for each (index, command): (observation, reward, done), in order."""
        return self.stepped(self.ask_step(commands))

    def ask_step(self, commands: Sequence[tuple[int, Any]]) -> Asked:
        """Begin what `step` does and do not wait; `stepped` has the answers."""
        return self._ask([(index, _move, command) for index, command in commands])

    def stepped(self, asked: Asked) -> list[tuple[np.ndarray, float, bool]]:
        """The answers to an `ask_step`; others may have been asked since."""
        return self._answers(asked)

    def each(self, jobs: Sequence[Callable[[Any], Any]]) -> Iterator[Any]:
        """Whole episodes: run the jobs, `parallel` at a time, each with a game; yields the answers in their order."""
        if not jobs:
            return
        self._open()
        answers: dict[int, Any] = {}
        waiting = iter(enumerate(jobs))
        busy: dict[Connection, int] = {}

        def send(pipe: Connection) -> None:
            for number, job in waiting:
                self._send(pipe, [(0, _whole, job)])
                busy[pipe] = number
                return

        for pipe in self._pipes:
            send(pipe)
        for number in range(len(jobs)):
            while number not in answers:
                ready = wait(list(busy))
                for pipe in [pipe for pipe in self._pipes if pipe in ready]:
                    answers[busy.pop(pipe)] = self._receive(pipe)[0]
                    send(pipe)
            yield answers.pop(number)

    def _ask(self, requests: Sequence[tuple[int, Callable[[Game, Any], Any], Any]]) -> Asked:
        """Ask each process once for all of its games."""
        self._open()
        mine: list[list[int]] = [[] for _ in self._pipes]
        for position, (index, _, _) in enumerate(requests):
            mine[index % self.parallel].append(position)
        asked = Asked([None] * len(requests))
        for pipe, positions in zip(self._pipes, mine, strict=True):
            if positions:
                parts = (requests[position] for position in positions)
                self._send(pipe, [(index // self.parallel, act, argument) for index, act, argument in parts])
                self._awaited[pipe].append((asked, positions))
        return asked

    def _answers(self, asked: Asked) -> list[Any]:
        """The answers in the order of the requests. A process answers in turn, so earlier ones may come first."""
        for pipe, awaited in self._awaited.items():
            while any(other is asked for other, _ in awaited):
                first, positions = awaited.popleft()
                for position, answer in zip(positions, self._receive(pipe), strict=True):
                    first.answers[position] = answer
        return asked.answers

    def _open(self) -> None:
        if self._pipes:
            return
        # Not multiprocessing's own start, which imports the whole program, torch included, in each process.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        for k in range(self.parallel):
            ours, theirs = Pipe()
            code = f"from ha2018.processes import serve; serve({theirs.fileno()})"
            words, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
            process = subprocess.Popen(
                words, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0
            )
            theirs.close()
            self._pipes.append(ours)
            self._awaited[ours] = deque()
            self._processes.append(process)
            self._send(ours, (self._make, len(range(k, self.count, self.parallel))))

    def _send(self, pipe: Connection, message: Any) -> None:
        try:
            pipe.send(message)
        except OSError:
            self._name_the_dead(pipe)

    def _receive(self, pipe: Connection) -> list[Any]:
        try:
            answer: list[Any] | RunError = pipe.recv()
        except (EOFError, OSError):
            self._name_the_dead(pipe)
        if isinstance(answer, RunError):
            raise answer
        return answer

    def _name_the_dead(self, pipe: Connection) -> NoReturn:
        number = self._pipes.index(pipe)
        code = self._processes[number].wait()
        _kill(self._processes[number])
        raise RunError(f"game process {number} of {self.parallel} died with exit code {code}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and the game engines that it has started, which outlive it otherwise."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(descriptor: int) -> None:
    """The life of a process: [(game, function, argument), …] comes through the pipe, the list of answers goes.

    A game that fails is an answer too, the last one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the pipe is the end
    os.set_inheritable(descriptor, False)  # an engine that held it would keep the pipe open after our death
    cv2.setNumThreads(1)
    pipe = Connection(descriptor)
    make, count = pipe.recv()
    games = [make() for _ in range(count)]
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more
        while True:
            message = pipe.recv()
            try:
                answers = [act(games[index], argument) for index, act, argument in message]
            except RunError as error:
                pipe.send(error)
                break
            pipe.send(answers)
    for game in games:
        game.close()


def _start(game: Game, seed: int) -> np.ndarray:
    game.reset(seed)
    return game.observe()


def _move(game: Game, command: Any) -> tuple[np.ndarray, float, bool]:
    reward, done = game.step(command)
    return game.observe(), reward, done


def _whole(game: Game, job: Callable[[Game], Any]) -> Any:
    return job(game)
