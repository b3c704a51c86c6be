"""A worker subprocess for jobs, so that a job that crashes or runs out of memory does not end the sweep."""

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

from headstart.utils.errors import HeadstartError, format_error

# After these errors the process may be unusable: memory is still held, or a CUDA error (a RuntimeError) persists.
UNFIT = (RuntimeError, MemoryError, SystemError)


class DiedError(Exception):
    """The worker process ended during a call; the message says how."""


class FailedError(Exception):
    """The called function raised; the message is that of the error."""


class Worker:
    """A subprocess that calls one function after another, so that imports are done only once.

    It is a plain subprocess, which works within any process that a launcher starts. Requests and results are pickled to
    its standard input and output; what it prints goes to standard error.

    Args:
        environment: environment variables to add to those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = dict(environment or {})
        # Not -m: Lightning would start its processes for other devices as that module, instead of by sys.argv.
        command = [sys.executable, "-c", "from headstart.sweeps.worker import serve; serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.environment}
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the worker and return its result.

        Args:
            function: a function of a module; it is pickled by name.
            *arguments: plain values and dataclasses of them.

        Raises:
            HeadstartError: the function raised one; the worker continues.
            FailedError: the function raised another error; after one of `UNFIT`, the worker is ended.
            DiedError: the worker process ended, such as by running out of memory.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, arguments), self._process.stdin)
            self._process.stdin.flush()
            kind, value = pickle.load(self._process.stdout)  # trusted: from our own process
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise DiedError(describe_exit(self._process.wait())) from None
        except BaseException:  # such as Ctrl-C: the result is not needed any more
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
        """Tell whether the process is running."""
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()


def describe_exit(code: int) -> str:
    """Describe how a process ended."""
    if code >= 0:
        return f"its process ended with exit status {code}"
    name = signal.Signals(-code).name
    out_of_memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{out_of_memory}"


def serve() -> None:
    """Run the worker's loop: call requested functions and send their results, until the parent process ends."""
    # Ctrl-C and the signals of clusters also reach the parent process, which decides whether to end this one.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Forked processes, such as a DataLoader's, close sys.stdin, and would wait for the thread that reads it.
    stdin, sys.stdin = sys.stdin, Path(os.devnull).open()  # noqa: SIM115 (it stays open for the life of the process)
    requests: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(stdin.buffer, requests), daemon=True).start()
    while True:
        function, arguments = requests.get()
        try:
            result = ("returned", function(*arguments))
        except HeadstartError as error:
            result = ("headstart", str(error))
        except Exception as error:  # any error of a job is its result
            result = ("unfit" if isinstance(error, UNFIT) else "raised", format_error(error))
        pickle.dump(result, results)
        results.flush()


def _receive(source: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            requests.put(pickle.load(source))  # from the parent process
        except EOFError:
            os._exit(1)  # the parent process has ended; do not finish a running job
        except BaseException:  # an unreadable request: exit, which the parent process notices
            traceback.print_exc()
            os._exit(1)
