"""`python train.py ARGUMENTS` as a process of its own: warm, from a fork server, or cold, as users start it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HELPERS = Path(__file__).parent
TIMEOUT_S = 600  # longer than any command takes, unless it hangs


class ForkServer:
    """Runs `forkserver.py` while the tests run; it imports now if `eager`, or when the first command comes."""

    def __init__(self, *, eager: bool) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="headstart-")
        python, path = Path(self.folder.name, "python"), Path(self.folder.name, "socket")
        client = shlex.join([sys.executable, "-IS", str(HELPERS / "warm_python.py")])
        python.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
        python.chmod(0o755)
        os.environ |= {
            "HEADSTART_PYTHON": sys.executable,
            "HEADSTART_WARM_PYTHON": str(python),
            "HEADSTART_FORKSERVER": str(path),
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(64)
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(HELPERS / "forkserver.py"), str(listener.fileno())],
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE, start_new_session=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": joined_path(ROOT, os.environ)},
            )  # fmt: skip

        assert self.process.stdin is not None
        if eager:
            self.process.stdin.write(b"import")
            self.process.stdin.flush()

    def close(self) -> None:
        """End it, and the processes that it has started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def joined_path(first: Path, environment: Mapping[str, str]) -> str:
    """Return PYTHONPATH with a folder in front."""
    return os.pathsep.join([str(first), *filter(None, [environment.get("PYTHONPATH")])])


def python(cold: bool = False) -> str:
    """Return the program to start as Python: a warm one, or a cold one, which imports everything again."""
    return sys.executable if cold else os.environ["HEADSTART_WARM_PYTHON"]


def started(
    *arguments: str | Path, cold: bool = False, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python train.py ARGUMENTS` in a process group of its own; a cold one imports everything, as for users."""
    environment = dict(environment or os.environ)
    if not cold:
        environment["PYTHONPATH"] = joined_path(HELPERS / "site", environment)
    return subprocess.Popen(
        [python(cold), "train.py", *map(str, arguments)], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command, and return its output."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process, and wait until it is gone; a warm one keeps its output open till then."""
    process.kill()
    process.communicate(timeout=TIMEOUT_S)


def command(
    *arguments: str | Path, cold: bool = False, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python train.py ARGUMENTS` to its end; see `started`."""
    return ended(started(*arguments, cold=cold, environment=environment))


def script(code: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a warm Python that runs code; its standard input is a pipe."""
    return subprocess.Popen(
        [python(), "-c", code, *map(str, arguments)], cwd=ROOT,
        env={**(environment or os.environ), "HEADSTART_WARM_CODE": "1"}, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
