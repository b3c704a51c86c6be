"""The end of a sweep: its table, what failed, the best run and its report, and the exit status."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from headstart.runs.listing import Run, sorted_by, table
from headstart.sweeps.job_process import call
from headstart.sweeps.jobs import failures_of, jobs_below
from headstart.sweeps.launching import Launched
from headstart.sweeps.seeds import repeated, seed_rows
from headstart.sweeps.worker import DiedError, FailedError
from headstart.utils.console import one_line, printable
from headstart.utils.errors import DiskError, HeadstartError, brief
from headstart.utils.files import csv_text, write_text
from headstart.utils.tables import show_rows

log = logging.getLogger(__name__)

SHOWN = 25  # jobs on the terminal; sweep.csv has all
CSV, SEEDS_CSV = "sweep.csv", "seeds.csv"
REPEATED = ("val/accuracy", "val/loss", "test/accuracy")  # that seeds are averaged over, after the monitored metric


@contextmanager
def ended(launched: Launched, cfg: DictConfig) -> Iterator[None]:
    """Tells what came of the jobs that are run inside, also if that is interrupted.

    Raises:
        SystemExit: a job failed and `sweep.allow_failures` is false, or the settings of one do not fit.
    """
    try:
        yield
    except HeadstartError as error:  # wrong settings: Hydra would print a traceback
        raise SystemExit(f"headstart: {error}") from None
    except KeyboardInterrupt:
        summarise(launched, str(cfg.monitor), report=False)
        raise SystemExit("interrupted; the same command goes on where it stopped") from None
    failed = summarise(launched, str(cfg.monitor), report=cfg.report is not False)
    if failed and not cfg.sweep.allow_failures:
        raise SystemExit(1)


def summarise(launched: Launched, metric: str, *, report: bool) -> int:
    """Prints the sweep's tables, and writes them and its report.

    Args:
        launched: the jobs of this command; the tables are of all in the folder.
        metric: that is monitored, if there is no job to ask.
        report: whether to write the report.

    Returns:
        How many jobs failed.
    """
    folder = launched.folder
    jobs = jobs_below(folder)
    metric = jobs[0].monitor if jobs else metric  # which an experiment may have chosen
    failures = failures_of(jobs, launched.failures)
    runs = [Run(job.folder, job.settings, {} if job.name in failures else job.metrics) for job in jobs]
    rows = job_rows(sorted_by(runs, metric), failures, folder, metric)
    found = {name: repeated(sorted_by(runs, metric), name) for name in dict.fromkeys((metric, *REPEATED))}
    groups = {name: repetitions for name, repetitions in found.items() if repetitions}
    _keep(folder / CSV, rows)
    show_jobs(rows, failed=bool(failures))
    if metric in groups:
        _keep(folder / SEEDS_CSV, seed_rows(groups, plain=True))
        print("mean ± standard deviation over seeds (95 % interval of the mean)")
        show_rows(seed_rows(groups, plain=False))
    shares = launched.importance()
    if shares:
        print("share of the differences that each setting explains: ", end="")
        print(", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in told_failures(failures, folder):
        console.print(printable(line))
    good = [run for run in runs if run.metrics]
    unfinished = sum(not run.metrics and run.folder.name not in failures for run in runs)
    counts = {"finished": len(good), "failed": len(failures), "unfinished": unfinished}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "finished")
    console.print(printable(f"{told}: {folder / CSV}"))
    if good:
        best = sorted_by(good, metric)[0]
        console.print(f"best run: {one_line(str(best.folder))}, {metric} {best.metrics[metric]:.4f}")
        if report:
            write_report(folder, best.folder, shares, failures)
    return len(failures)


def show_jobs(rows: Sequence[Sequence[str]], *, failed: bool) -> None:
    """Prints the first rows, without the names, which say less than the settings, and without the long reasons."""
    show_rows([row[1 : -1 if failed else None] for row in rows[: SHOWN + 1]])
    if len(rows) > SHOWN + 1:
        print(f"and {len(rows) - SHOWN - 1} more")


def told_failures(failures: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Lines that say what failed and why; jobs that failed for the same reason stand together."""
    logs = {name: f"{name} ({folder / name / 'train.log'})" for name in failures}
    for reason in dict.fromkeys(failures.values()):
        names = [name for name in failures if failures[name] == reason]
        if len(names) == 1:
            yield f"failed: {logs[names[0]]}: {reason}"
        else:
            yield f"{len(names)} failed: {reason}"
            yield from (f"    {logs[name]}" for name in names[:SHOWN])
            yield from [f"    and {len(names) - SHOWN} more"] * (len(names) > SHOWN)


def _keep(path: Path, rows: Sequence[Sequence[str]]) -> None:
    try:
        write_text(path, csv_text(rows))
    except (OSError, DiskError) as error:  # the terminal has the table, and the same command writes it again
        log.warning("%s", error if isinstance(error, DiskError) else f"{path} cannot be written: {brief(error)}")


def job_rows(runs: Sequence[Run], failures: Mapping[str, str], folder: Path, metric: str) -> list[list[str]]:
    """A row for each job under a header: its name, what differs, figures, and why it failed if one did.

    Args:
        runs: in the order of the rows.
        failures: by the names of the jobs.
        folder: of the sweep.
        metric: that stands first of the figures.
    """
    header, *rows = table(runs, folder, metric)
    header[0] = "job"
    if not failures:
        return [header, *rows]
    for row in rows:
        if row[0] in failures:
            row[row.index("not ended")] = "failed"
    begun = {row[0] for row in rows}
    rows += [[name, *[""] * (len(header) - 1)] for name in failures if name not in begun]
    return [[*header, "failure"], *([*row, failures.get(row[0], "")] for row in rows)]


def write_report(folder: Path, best: Path, importance: Mapping[str, float], lost: Mapping[str, str]) -> None:
    """Writes the report of the best run and that of the sweep; what goes wrong there is a warning."""
    from headstart.sweeps import report as sweep

    try:
        for line in call(sweep.report_sweep, folder, best, dict(importance), dict(lost)):
            print(printable(line))
    except (HeadstartError, FailedError, DiedError) as error:
        log.warning("there is no report of the sweep: %s", error)
