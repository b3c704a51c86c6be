"""Who runs a trial of a study: processes on many machines may, and die."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from headstart.utils.errors import brief

log = logging.getLogger(__name__)

# Attributes of a trial.
OWNER, ALIVE, JOB, FAILURE = "headstart/owner", "headstart/alive", "headstart/job", "headstart/failure"
HEARTBEAT_S = 60.0
LOST_S = 300.0  # a trial without a heartbeat for so long is taken over; machines' clocks differ by less
FRESH_S = 5.0  # a trial that nobody owns may just have been asked for


def here() -> str:
    """This machine; in a container, its processes have numbers of their own."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


@cache
def token(pid: int) -> str:  # noqa: ARG001 (a process that is forked from this one has another number, and token)
    """What tells this process from one that died and had its number."""
    return uuid.uuid4().hex


def own(trial: Trial) -> None:
    """Makes a trial this process's."""
    trial.set_user_attr(ALIVE, time.time())  # first: the former owner's is old
    trial.set_user_attr(OWNER, f"{here()} {os.getpid()} {token(os.getpid())}")


def is_mine(trial: Trial) -> bool:
    """Whether a trial is run, and by this process."""
    found = trial.study._storage.get_trial(trial._trial_id)
    return found.state == TrialState.RUNNING and str(found.user_attrs.get(OWNER)).endswith(token(os.getpid()))


def give_back(trial: Trial) -> None:
    """Leaves a trial that this process runs to whoever comes."""
    if is_mine(trial):
        trial.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def taken(study: optuna.Study) -> int:
    """The trials that were run or are being run; those whose process died wait again."""
    if any(OWNER not in trial.user_attrs for trial in running(study)):
        time.sleep(FRESH_S)
    for trial in running(study):
        if lost(trial):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    return sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def running(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that processes run, whichever."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def lost(trial: FrozenTrial) -> bool:
    """Whether the process that runs a trial is no more."""
    machine, pid, theirs = str(trial.user_attrs.get(OWNER, "nobody 0 -")).rsplit(" ", 2)
    if machine == "nobody":
        return True
    if theirs == token(os.getpid()):
        return False
    if machine == here() and (int(pid) == os.getpid() or not _is_running(int(pid))):
        return True
    return bool(time.time() - trial.user_attrs[ALIVE] > LOST_S)  # also where another process has its number now


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def kept_alive(trials: Sequence[Trial]) -> Iterator[None]:
    """Tells other machines, once a minute, that these trials are run; an interruption leaves them to whoever comes."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            for trial in trials:
                try:
                    if is_mine(trial):
                        trial.set_user_attr(ALIVE, time.time())
                except Exception as error:  # of a database that is away for a moment
                    log.warning("the study cannot be told that trial %d is run: %s", trial.number, brief(error))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for trial in trials:
            give_back(trial)
