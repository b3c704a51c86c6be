"""Summary of a sweep at its end: tables, failures, the best run, reports and the exit status."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from headstart.runs.listing import table
from headstart.sweeps.job_process import call_in_worker
from headstart.sweeps.launching import JobLauncher
from headstart.sweeps.results import Sweep
from headstart.sweeps.seeds import seed_rows
from headstart.sweeps.worker import DiedError, FailedError
from headstart.utils.console import one_line, printable
from headstart.utils.errors import DiskError, HeadstartError, format_error
from headstart.utils.files import csv_text, write_text
from headstart.utils.tables import show_rows

log = logging.getLogger(__name__)

MAX_SHOWN = 25  # most jobs printed; sweep.csv has all
CSV, SEEDS_CSV = "sweep.csv", "seeds.csv"


@contextmanager
def final_summary(launcher: JobLauncher, cfg: DictConfig) -> Iterator[None]:
    """Summarise the jobs that are run in this context, also after an interruption.

    Raises:
        SystemExit: a job failed and `sweep.allow_failures` is false, the settings do not fit, or the sweep was
            interrupted.
    """
    try:
        yield
    except HeadstartError as error:  # Hydra would print a traceback for wrong settings
        raise SystemExit(f"headstart: {error}") from None
    except KeyboardInterrupt:
        summarise(launcher, str(cfg.monitor), report=False)
        raise SystemExit("interrupted; the same command continues where it stopped") from None
    failed = summarise(launcher, str(cfg.monitor), report=cfg.report is not False)
    if failed and not cfg.sweep.allow_failures:
        raise SystemExit(1)


def summarise(launcher: JobLauncher, metric: str, *, report: bool) -> int:
    """Print and write the tables of all jobs in the sweep's folder, write its report, and count the failed jobs.

    The metric is used if no job has recorded the monitored one.
    """
    sweep = Sweep.read(launcher.folder, metric, launcher.failures)
    metric, path = sweep.metric, sweep.folder / CSV
    rows = job_rows(sweep)
    _write_csv(path, rows)
    # Job names repeat the settings, and the reasons of failures are long.
    show_rows([row[1 : -1 if sweep.failures else None] for row in rows[: MAX_SHOWN + 1]])
    if len(rows) > MAX_SHOWN + 1:
        print(f"and {len(rows) - MAX_SHOWN - 1} more")
    if metric in sweep.groups:
        _write_csv(sweep.folder / SEEDS_CSV, seed_rows(sweep.groups, plain=True))
        print("mean ± standard deviation over seeds (95 % interval of the mean)")
        show_rows(seed_rows(sweep.groups, plain=False))
    importance = launcher.importance()
    if importance:
        fractions = ", ".join(f"{name} {fraction:.0%}" for name, fraction in importance.items())
        print(f"importance, the fraction of the variance that each setting explains: {fractions}")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in format_failures(sweep.failures, sweep.folder):
        console.print(printable(line))
    counts = {"finished": len(sweep.done), "failed": len(sweep.failures), "unfinished": sweep.unfinished}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "finished")
    console.print(printable(f"{states}: {path}"))
    if sweep.done:
        best = sweep.best
        console.print(f"best run: {one_line(str(best.folder))}, {metric} {best.metrics[metric]:.4f}")
        if report:
            write_report(sweep, importance)
    return len(sweep.failures)


def format_failures(failures: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Yield lines that describe the failures, with jobs that failed for the same reason together."""
    logs = {name: f"{name} ({folder / name / 'train.log'})" for name in failures}
    for reason in dict.fromkeys(failures.values()):
        names = [name for name in failures if failures[name] == reason]
        if len(names) == 1:
            yield f"failed: {logs[names[0]]}: {reason}"
        else:
            yield f"{len(names)} failed: {reason}"
            yield from (f"    {logs[name]}" for name in names[:MAX_SHOWN])
            yield from [f"    and {len(names) - MAX_SHOWN} more"] * (len(names) > MAX_SHOWN)


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    try:
        write_text(path, csv_text(rows))
    except (OSError, DiskError) as error:  # the table is printed anyway, and the command can be repeated
        log.warning("%s", error if isinstance(error, DiskError) else f"{path} cannot be written: {format_error(error)}")


def job_rows(sweep: Sweep) -> list[list[str]]:
    """Return a header and a row for each job: name, differing settings, metrics, and the reason if any job failed."""
    header, *rows = table(sweep.runs, sweep.folder, sweep.metric)
    header[0] = "job"
    if not sweep.failures:
        return [header, *rows]
    started = {row[0] for row in rows}
    rows += [[name, *[""] * (len(header) - 1)] for name in sweep.failures if name not in started]
    return [[*header, "failure"], *([*row, sweep.failures.get(row[0], "")] for row in rows)]


def write_report(sweep: Sweep, importance: Mapping[str, float]) -> None:
    """Write the reports of the best run and of the sweep, and print their paths; errors become warnings."""
    from headstart.sweeps.report import report_sweep

    try:
        for line in call_in_worker(report_sweep, sweep, dict(importance)):
            print(printable(line))
    except (HeadstartError, FailedError, DiedError) as error:
        log.warning("there is no report of the sweep: %s", error)
