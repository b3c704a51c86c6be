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
LONG_S = 600  # nothing takes as long, unless it hangs


class ForkServer:
    """Runs `forkserver.py` for as long as the tests run.

    Args:
        eager: import now, while the processes that run the tests do so, too; else when the first command comes.
    """

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
        """Ends it, and what it has started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def joined_path(first: Path, environment: Mapping[str, str]) -> str:
    """PYTHONPATH with a folder in front."""
    return os.pathsep.join([str(first), *filter(None, [environment.get("PYTHONPATH")])])


def python(cold: bool = False) -> str:
    """What to start as Python; a cold one pays for its imports."""
    return sys.executable if cold else os.environ["HEADSTART_WARM_PYTHON"]


def started(
    *arguments: str | Path, cold: bool = False, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """`python train.py ARGUMENTS`, which has a process group of its own.

    Args:
        *arguments: of the command line.
        cold: import everything anew, as users have it.
        environment: instead of this process's.
    """
    environment = dict(environment or os.environ)
    if not cold:
        environment["PYTHONPATH"] = joined_path(HELPERS / "site", environment)
    return subprocess.Popen(
        [python(cold), "train.py", *map(str, arguments)], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits for a command, and gives what it said."""
    out, err = process.communicate(timeout=LONG_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill(process: subprocess.Popen[str]) -> None:
    """Kills a process, and waits until it is gone: whatever of it is warm has its output open till then."""
    process.kill()
    process.communicate(timeout=LONG_S)


def command(
    *arguments: str | Path, cold: bool = False, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python train.py ARGUMENTS`; see `started`."""
    return ended(started(*arguments, cold=cold, environment=environment))


def script(code: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A warm Python that runs code; it waits for its standard input, which is a pipe, if the code does."""
    return subprocess.Popen(
        [python(), "-c", code, *map(str, arguments)], cwd=ROOT,
        env={**(environment or os.environ), "HEADSTART_WARM_CODE": "1"}, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
