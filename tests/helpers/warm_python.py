"""Stands for Python: hands headstart's commands to the fork server, and leaves all others to the real one.

Run as `python -IS warm_python.py ARGUMENTS`: it starts in 20 ms. Killing it kills the command; other signals are passed
on, and it ends as the command has ended. See `forkserver.py`.
"""

import json
import os
import signal
import socket
import sys

KNOWN = (
    ["-c", "from headstart.sweeps.worker import serve; serve()"],
    ["-m", "torch.distributed.run"],
    ["-m", "ipykernel_launcher"],
)
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["-u"]:  # as torchrun asks for: what is not buffered is seen at the end, too
        arguments = arguments[1:]
    code = arguments[:1] == ["-c"] and os.environ.pop("HEADSTART_WARM_CODE", None)
    if not (arguments and (code or arguments[0].endswith("train.py") or arguments[:2] in KNOWN)):
        python = os.environ["HEADSTART_PYTHON"]
        os.execv(python, [python, *arguments])
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.connect(os.environ["HEADSTART_FORKSERVER"])
    for name in SIGNALS:
        signal.signal(getattr(signal, name), lambda number, _: server.send(bytes([number])))
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "group": os.getpgrp(),
        "parent": os.getppid(),
    }
    message = json.dumps(request).encode()
    socket.send_fds(server, [len(message).to_bytes(8, "little")], [0, 1, 2])
    server.sendall(message)
    answer = b""
    while len(answer) < 4:
        part = server.recv(4 - len(answer))
        if not part:
            os.kill(os.getpid(), signal.SIGKILL)  # the server is gone, and the command with it
        answer += part
    status = int.from_bytes(answer, "little", signed=True)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    os._exit(status)


main(sys.argv[1:])
