"""Kills at random moments: `pytest -m soak`, HEADSTART_KILLS=30 for more of them.

A failure that a random kill reveals becomes a point in `helpers/kill_points.py`, and a test that is run every time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.cache.disk import cached_sets
from tests.helpers.commands import command, ended, started
from tests.helpers.images import class_folders
from tests.helpers.processes import group
from tests.helpers.runs import RESNET18, SMALL, figures, read_metrics
from tests.helpers.sweeps import check_not_repeated, finished, rows

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("HEADSTART_KILLS", "6"))
MAX_DELAY_S = 4.0  # from the beginning of the work


def killed_inside(arguments: tuple[str, ...], begun: Callable[[], bool], rng: random.Random) -> bool:
    """Kill all processes of a command at a random moment after its work has begun; False if it ended before."""
    process = started(*arguments)
    while process.poll() is None and not begun():
        time.sleep(0.01)
    time.sleep(rng.uniform(0, MAX_DELAY_S))
    inside = process.poll() is None
    if inside:
        os.killpg(process.pid, signal.SIGKILL)
    result = ended(process)
    assert inside or result.returncode == 0, result.stdout + result.stderr
    return inside


def killed_again_and_again(root: Path, *overrides: str) -> list[Path]:
    """Kill sweeps until `KILLS` fell inside their work, and return their folders; only the last one has not ended."""
    seed = time.time_ns()
    rng, fell, folder = random.Random(seed), 0, root / "0"
    folders, seen = [folder], [finished(folder)]
    while fell < KILLS:
        attempts = attempts_in(folder)
        arguments = ("-m", *overrides, f"hydra.sweep.dir={folder}")
        inside = killed_inside(arguments, lambda n=attempts, f=folder: attempts_in(f) > n, rng)  # type: ignore[misc]
        fell += inside
        seen.append(finished(folder))
        check_not_repeated(seen)
        if not inside:
            folder = root / str(len(folders))
            folders.append(folder)
            seen = [finished(folder)]
    print(f"seed {seed}: {fell} kills fell inside the work of {len(folders)} sweeps")
    return folders


def attempts_in(folder: Path) -> int:
    """How often the jobs of a sweep were begun."""
    return sum(json.loads(path.read_text())["attempts"] for path in folder.glob("*/job.json"))


@pytest.mark.parametrize(
    "overrides",
    [
        ("lr=3e-4,1e-3,3e-3,1e-2,3e-2,1e-1", "head=linear,mlp"),
        ("sweep=head_lr", "sweep.name=search", "sweep.trials=10"),
    ],
    ids=["grid", "study"],
)
def test_a_sweep_that_is_killed_at_random_ends_as_one_that_is_not(overrides: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (*overrides, *SMALL[1:], "epochs=60", "callbacks.early_stopping.patience=40")
    folders = killed_again_and_again(tmp_path, *overrides)
    undisturbed = tmp_path / "undisturbed"
    for folder in (folders[-1], undisturbed):
        result = command("-m", *overrides, f"hydra.sweep.dir={folder}")
        assert result.returncode == 0, result.stdout + result.stderr
    for folder in folders:
        assert rows(folder) == rows(undisturbed)


def test_features_that_are_killed_at_random_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, images = tmp_path / "cache", 1200
    monkeypatch.setenv("HEADSTART_CACHE", str(cache))
    root = class_folders(tmp_path / "images", images=images // 2)
    data = ("data=imagefolder", f"data.root={root}", "data.test_fraction=0", *SMALL, *RESNET18, "epochs=1")
    overrides, fell, seed = (*data, "features.engine=eager"), 0, time.time_ns()
    rng = random.Random(seed)
    for attempt in range(10 * KILLS):
        before = cached_rows(cache)
        arguments = (*overrides, f"hydra.run.dir={tmp_path / str(attempt)}")
        if fell == KILLS or before > 0.8 * images:
            break
        moment = rng.randrange(1, images // (2 * KILLS))  # rows more than there were: seconds would be over too soon
        process = started(*arguments)
        while process.poll() is None and cached_rows(cache) < before + moment:
            time.sleep(0.001)
        fell += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    print(f"seed {seed}: {fell} kills fell inside the computing of features")
    assert fell > 0
    before = cached_rows(cache)
    last = metrics_of(overrides, tmp_path / "last")
    assert (last["features/computed"], last["features/cached"]) == (images - before, before)
    assert cached_rows(cache) == images  # none was computed twice
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "another"))
    undisturbed = metrics_of(overrides, tmp_path / "undisturbed")
    computed = ("features/computed", "features/cached")
    assert {k: v for k, v in figures(last).items() if k not in computed} == {
        k: v for k, v in figures(undisturbed).items() if k not in computed
    }


def cached_rows(cache: Path) -> int:
    return sum(cached.rows for cached in cached_sets(cache))


def metrics_of(overrides: tuple[str, ...], folder: Path) -> dict[str, Any]:
    result = command(*overrides, f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stdout + result.stderr
    return read_metrics(folder)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_fifty_jobs_are_one_process_that_does_not_grow(tmp_path: Path) -> None:
    overrides = ("seed=range(50)", *SMALL[1:], "epochs=1", "data.train_per_class=3", f"hydra.sweep.dir={tmp_path}")
    process = started("-m", *overrides, cold=True)
    sizes: dict[int, list[tuple[int, int]]] = {}
    while process.poll() is None:
        done = len(list(tmp_path.glob("*/metrics.json")))
        for pid in workers_of(process.pid):
            sizes.setdefault(pid, []).append((done, resident(pid)))
        time.sleep(0.1)
    assert ended(process).returncode == 0
    (points,) = (points for points in sizes.values() if len(points) > 5)  # one for all; others are about to become git
    early = max(size for done, size in points if 5 <= done < 15)
    late = max(size for done, size in points if done >= 40)
    assert late - early < 20e6, (early, late)


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def workers_of(session: int) -> list[int]:
    workers = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session and b"headstart.sweeps.worker" in (path / "cmdline").read_bytes():
                workers.append(int(path.name))
        except (OSError, ProcessLookupError):
            continue
    return workers


def test_no_worker_outlives_a_run_that_is_killed_at_random(tmp_path: Path) -> None:
    """The run alone is killed, as by the kernel that is out of memory; 50 times and more by HEADSTART_KILLS=50."""
    images = class_folders(tmp_path / "images", images=200)
    overrides = ("data=imagefolder", f"data.root={images}", *SMALL, "freeze=false", "data.num_workers=2")
    seed, with_workers, longest = time.time_ns(), 0, 0.0
    rng = random.Random(seed)
    for attempt in range(KILLS):
        process = started(
            *overrides, "epochs=1000", "callbacks=none", f"hydra.run.dir={tmp_path / str(attempt)}", cold=True
        )
        while process.poll() is None and len(group(process.pid)) < 3:  # itself and its two workers
            time.sleep(0.01)
        time.sleep(rng.uniform(0, MAX_DELAY_S))
        with_workers += len(group(process.pid)) > 1
        process.kill()
        killed = time.perf_counter()
        while group(process.pid):
            time.sleep(0.01)
            assert time.perf_counter() - killed < 60
        longest = max(longest, time.perf_counter() - killed)
        process.communicate()
    print(
        f"seed {seed}: {KILLS} runs killed, {with_workers} with workers, which were gone after {longest:.2f} s at most"
    )
    assert with_workers > 0
    assert longest < 5
