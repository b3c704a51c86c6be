"""Ends a command at a chosen point, as a power cut, the kernel or a cluster would: by SIGKILL, once and for all.

A random kill rarely falls where it hurts, and never twice in the same place. Here a command ends itself before or after
the n-th call of a function, which the environment variable HEADSTART_KILL names; `killed_at` sets it. The process that
makes the call plants the point: a warm command when it begins, a cold Python by `site/sitecustomize.py`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "HEADSTART_KILL"
BEFORE, AFTER = "before", "after"
# Where: the module that looks the function up, the function, and on which side of the call.
POINTS = {
    "an epoch begins": ("headstart.training.callbacks", "SeedEpochs.on_train_epoch_start", BEFORE),
    "before a checkpoint": ("lightning.pytorch.trainer.trainer", "Trainer.save_checkpoint", BEFORE),
    "after a checkpoint": ("lightning.pytorch.trainer.trainer", "Trainer.save_checkpoint", AFTER),
    "inside a checkpoint": ("headstart.training.checkpoints", "torch.save", AFTER),  # written, and not in its place yet
    "before the figures": ("headstart.train", "record_end", BEFORE),
    "after the figures": ("headstart.train", "record_end", AFTER),
    "after rows": ("headstart.cache.store", "FeatureStore.append", AFTER),
    "between rows and their record": ("headstart.cache.store", "_write_whole", AFTER),
}
# Who: the process itself, its parent, or all that the command has started.
PROCESS, PARENT, GROUP = "process", "parent", "group"


def killed_at(point: str, count: int, *, who: str = GROUP, rank: int = 0, once: Path | None = None) -> dict[str, str]:
    """Return the environment of a command that ends itself at the `count`-th call of one of `POINTS` in rank `rank`.

    Args:
        point: one of `POINTS`.
        count: which call, from 1, in one process.
        who: is killed: the process, its parent or its group.
        rank: of the process that makes the call, of several that train together.
        once: a file that is made when it happens; if it exists, nothing happens.
    """
    assert point in POINTS
    plan = {"point": point, "count": count, "who": who, "rank": rank, "once": str(once) if once else None}
    return {**os.environ, VARIABLE: json.dumps(plan)}


def plant() -> None:
    """Plant the point that the environment names: at once, or when its module is imported."""
    plan = json.loads(os.environ[VARIABLE])
    name, function, side = POINTS[plan["point"]]
    if name in sys.modules:
        wrap(sys.modules[name], function, side, plan)
    else:
        sys.meta_path.insert(0, Planter(name, lambda module: wrap(module, function, side, plan)))


def wrap(module: ModuleType, name: str, side: str, plan: dict[str, Any]) -> None:
    """Replace a function by one that counts its calls and kills at the planned one."""
    *owners, last = name.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    function, calls = getattr(owner, last), 0

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == plan["count"] and int(os.environ.get("LOCAL_RANK", "0")) == plan["rank"]
        if now and side == BEFORE:
            kill(plan)
        result = function(*arguments, **settings)
        if now and side == AFTER:
            kill(plan)
        return result

    setattr(owner, last, counted)


def kill(plan: dict[str, Any]) -> None:
    if plan["once"]:
        try:
            Path(plan["once"]).touch(exist_ok=False)
        except FileExistsError:
            return
    if plan["who"] == GROUP:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    # A warm process is a child of the fork server, which knows who requested it.
    parent = int(os.environ.get("HEADSTART_PARENT") or os.getppid())
    os.kill(parent if plan["who"] == PARENT else os.getpid(), signal.SIGKILL)


class Planter(importlib.abc.MetaPathFinder):
    """Calls a function with a module after it has been imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
