"""A process beside this one that does the work and may die of it: a job that runs out of memory ends no sweep."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from headstart.utils.errors import HeadstartError, brief

# After these a process may be of no more use: memory is still held, or a GPU's kernel failed, which is a RuntimeError.
UNFIT = (RuntimeError, MemoryError, SystemError)


class DiedError(Exception):
    """The process ended in the middle of its work; the message says how."""


class FailedError(Exception):
    """The work raised; the message is that of the error."""


class Worker:
    """A process that is started once and does one thing after another: imports are paid for once.

    It is a plain subprocess, which can be had in any process that a launcher starts. Requests and answers go through
    its standard input and output; what it prints goes to standard error.

    Args:
        environment: what differs from this process's.

    Attributes:
        environment: that.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = dict(environment or {})
        # Not -m: Lightning would start the processes of other devices as it, instead of by sys.argv.
        command = [sys.executable, "-c", "from headstart.sweeps.worker import serve; serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.environment}
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, computed over there.

        Args:
            function: of a module; it is imported by its name.
            arguments: plain values and dataclasses of them.

        Raises:
            HeadstartError: the function raised one; the process goes on.
            FailedError: it raised something else; after one of `UNFIT`, the process is ended.
            DiedError: the process was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, arguments), self._process.stdin)
            self._process.stdin.flush()
            kind, value = pickle.load(self._process.stdout)  # of a process of our own
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise DiedError(told_exit(self._process.wait())) from None
        except BaseException:  # such as Ctrl-C: nobody waits for the work any more
            self.close()
            raise
        if kind == "returned":
            return value
        if kind == "headstart":
            raise HeadstartError(value)
        if kind == "unfit":
            self.close()
        raise FailedError(value)

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()


def told_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"its process ended with exit status {code}"
    name = signal.Signals(-code).name
    out_of_memory = ", as the system does to what takes too much memory" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{out_of_memory}"


def serve() -> None:
    """The work of the process: calls what is asked for, and answers; it ends with the process that asks."""
    # Ctrl-C and the signals of clusters reach the process that waits, too: it decides, and ends this one.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Processes that are forked here, such as a DataLoader's, close sys.stdin, and would wait for who is reading it.
    stdin, sys.stdin = sys.stdin, Path(os.devnull).open()  # noqa: SIM115 (it is open as long as the process lives)
    requests: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(stdin.buffer, requests), daemon=True).start()
    while True:
        function, arguments = requests.get()
        try:
            answer = ("returned", function(*arguments))
        except HeadstartError as error:
            answer = ("headstart", str(error))
        except Exception as error:  # whatever a job raises is its result
            answer = ("unfit" if isinstance(error, UNFIT) else "raised", brief(error))
        pickle.dump(answer, answers)
        answers.flush()


def _receive(source: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            requests.put(pickle.load(source))  # of the process that started this one
        except EOFError:
            os._exit(1)  # nobody is there to answer to, also in the middle of a job
        except BaseException:  # what cannot be read cannot be answered: the other side sees the end
            traceback.print_exc()
            os._exit(1)
