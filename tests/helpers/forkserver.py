"""A Python that has imported everything: commands are forked from it, where a cold one takes seconds to import.

`python forkserver.py FILE` listens on a socket, by its file descriptor, and imports when the first command comes, or
whatever is written to its standard input.
`warm_python.py` hands a command over: its arguments, environment, folder, and standard input, output and error. The
command is run as Python would run it, in a process of its own, and its exit status is handed back. When its standard
input ends, the server ends, and all that it has started.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

# What `python train.py`, a job of a sweep, a report and the `headstart` command import, sooner or later.
MODULES = (
    *("torch", "torchvision", "lightning.pytorch", "torch.utils.tensorboard", "sklearn.model_selection"),
    *("sklearn.datasets", "scipy.stats", "scipy.optimize", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("hydra", "optuna", "timm", "torch.distributed.run", "lightning.pytorch.loggers"),
    *("headstart.train", "headstart.cli", "headstart.inference.evaluate", "headstart.sweeps.report"),
    *("headstart.sweeps.job_process", "headstart.sweeps.grid", "headstart.sweeps.optuna", "headstart.sweeps.study"),
    "headstart.sweeps.summary",
    "tests.helpers.networks",
)
HEADER = 8  # bytes of the length in front of a request


class Request(NamedTuple):
    """A command to run."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    group: int
    parent: int
    files: list[int]


def preload() -> None:
    """Imports all that commands need."""
    for name in MODULES:
        with suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
    from hydra.core.plugins import Plugins

    Plugins.instance()  # looks for Hydra's plugins
    threads = [thread.name for thread in threading.enumerate()]
    assert len(threads) == 1, f"a process with threads cannot be forked: {threads}"
    gc.collect()
    gc.freeze()  # what is never collected is never copied


class Server:
    """Forks a process for each command, and reports to its client how it ended."""

    def __init__(self, listener: int) -> None:
        self.listener = socket.socket(fileno=listener)
        self.woken, self.waker = os.pipe()
        os.set_blocking(self.waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the tests ends this server
        self.connections: dict[int, socket.socket] = {}  # to the client of each command, by its process
        self.loaded = False

    def serve(self) -> Request:
        """Listen for commands; return in the process of each of them, and never in the server itself."""
        while True:
            waiting = {connection.fileno(): pid for pid, connection in self.connections.items()}
            ready, _, _ = select.select([0, self.woken, self.listener.fileno(), *waiting], [], [])
            if 0 in ready:
                if not os.read(0, 4096):
                    self.end()
                self.load()
            if self.woken in ready:
                os.read(self.woken, 4096)
                self.report_ended()
            for file in set(ready) & set(waiting):
                if waiting[file] in self.connections:
                    self.forward_signals(waiting[file])
            if self.listener.fileno() in ready:
                connection = self.listener.accept()[0]
                request = receive(connection)
                if request is None:
                    connection.close()
                elif self.start(request, connection):
                    return request

    def load(self) -> None:
        if not self.loaded:
            preload()
        self.loaded = True

    def start(self, request: Request, connection: socket.socket) -> bool:
        """Fork the process of a command; return True in that process."""
        self.load()
        pid = os.fork()
        # What a command starts is in its group, as it would be without this server; set on both sides, as shells do.
        inner = request.group in self.connections
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, request.group if inner else pid)
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for other in (self.listener, connection, *self.connections.values()):
                other.close()
            for file in (self.woken, self.waker):
                os.close(file)
            return True
        for file in request.files:
            os.close(file)
        self.connections[pid] = connection
        return False

    def forward_signals(self, pid: int) -> None:
        """Forward signals to a command, a byte each; kill it if its client is gone."""
        try:
            numbers = self.connections[pid].recv(64)
        except ConnectionResetError:
            numbers = b""
        if not numbers:
            self.connections.pop(pid).close()
            is_leader = os.getpgid(pid) == pid
            (os.killpg if is_leader else os.kill)(pid, signal.SIGKILL)
        for number in numbers:
            os.kill(pid, number)  # not waited for yet, so that it is there

    def report_ended(self) -> None:
        """Report how processes have ended: by their exit status, or by the signal that killed them, below 0."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if connection := self.connections.pop(pid, None):
                with suppress(OSError):
                    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
                connection.close()

    def end(self) -> None:
        for pid in self.connections:
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
        os._exit(0)


def receive(connection: socket.socket) -> Request | None:
    """Return the request of a connection, or None if it breaks off."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while len(message) < HEADER or len(message) < HEADER + int.from_bytes(message[:HEADER], "little"):
        more = connection.recv(1 << 16)
        if not more:
            return None
        message += more
    request: dict[str, Any] = json.loads(message[HEADER:])
    return Request(**request, files=list(files))


def become(request: Request, python: str) -> None:
    """Run a command as a Python that was started with its arguments would."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    for number, file in enumerate(request.files):
        os.dup2(file, number)
        os.close(file)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        old = getattr(sys, name)  # of the server's own file, which another kind of file may have replaced
        new = open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment, HEADSTART_PARENT=str(request.parent))
    sys.executable = python  # what the command starts is warm, too
    # What is drawn, or looked up, when a module is imported.
    random.seed()
    rank_zero_only.rank = _get_rank() or 0
    if "HEADSTART_KILL" in os.environ:
        from tests.helpers.kill_points import plant

        plant()
    try:
        run(request.arguments)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    # What Python does at its end, but for the last collection: of all that was imported, it would take two seconds.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(arguments: list[str]) -> None:
    """Runs a script, a module (-m) or code (-c)."""
    first, *rest = arguments
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif first == "-m":
        sys.argv = rest
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    become(Server(int(sys.argv[1])).serve(), os.environ["HEADSTART_WARM_PYTHON"])
