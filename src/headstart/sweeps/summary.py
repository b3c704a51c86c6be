"""Summary of a sweep at its end: tables, failures, the best run, reports and the exit status."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from headstart.runs.listing import table
from headstart.sweeps.job_process import call
from headstart.sweeps.launching import Launched
from headstart.sweeps.results import Sweep
from headstart.sweeps.seeds import seed_rows
from headstart.sweeps.worker import DiedError, FailedError
from headstart.utils.console import one_line, printable
from headstart.utils.errors import DiskError, HeadstartError, format_error
from headstart.utils.files import csv_text, write_text
from headstart.utils.tables import show_rows

log = logging.getLogger(__name__)

SHOWN = 25  # most jobs printed; sweep.csv has all
CSV, SEEDS_CSV = "sweep.csv", "seeds.csv"


@contextmanager
def ended(launched: Launched, cfg: DictConfig) -> Iterator[None]:
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
        summarise(launched, str(cfg.monitor), report=False)
        raise SystemExit("interrupted; the same command goes on where it stopped") from None
    failed = summarise(launched, str(cfg.monitor), report=cfg.report is not False)
    if failed and not cfg.sweep.allow_failures:
        raise SystemExit(1)


def summarise(launched: Launched, metric: str, *, report: bool) -> int:
    """Print the sweep's tables, and write them and the sweep's report.

    Args:
        launched: the jobs of this command; the tables include all jobs in the folder.
        metric: the monitored metric, used if there is no job that records it.
        report: whether to write the report.

    Returns:
        The number of failed jobs.
    """
    sweep = Sweep.read(launched.folder, metric, launched.failures)
    metric, table_of_all = sweep.metric, sweep.folder / CSV
    rows = job_rows(sweep)
    _keep(table_of_all, rows)
    show_jobs(rows, failed=bool(sweep.failures))
    if metric in sweep.groups:
        _keep(sweep.folder / SEEDS_CSV, seed_rows(sweep.groups, plain=True))
        print("mean ± standard deviation over seeds (95 % interval of the mean)")
        show_rows(seed_rows(sweep.groups, plain=False))
    shares = launched.importance()
    if shares:
        print("share of the differences that each setting explains: ", end="")
        print(", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in told_failures(sweep.failures, sweep.folder):
        console.print(printable(line))
    counts = {"finished": len(sweep.done), "failed": len(sweep.failures), "unfinished": sweep.unfinished}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "finished")
    console.print(printable(f"{told}: {table_of_all}"))
    if sweep.done:
        best = sweep.best
        console.print(f"best run: {one_line(str(best.folder))}, {metric} {best.metrics[metric]:.4f}")
        if report:
            write_report(sweep, shares)
    return len(sweep.failures)


def show_jobs(rows: Sequence[Sequence[str]], *, failed: bool) -> None:
    """Print the first rows without job names, which repeat the settings, and without the long reasons of failures."""
    show_rows([row[1 : -1 if failed else None] for row in rows[: SHOWN + 1]])
    if len(rows) > SHOWN + 1:
        print(f"and {len(rows) - SHOWN - 1} more")


def told_failures(failures: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Yield lines that describe the failures, with jobs that failed for the same reason together."""
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
    except (OSError, DiskError) as error:  # the table is printed anyway, and the command can be repeated
        log.warning("%s", error if isinstance(error, DiskError) else f"{path} cannot be written: {format_error(error)}")


def job_rows(sweep: Sweep) -> list[list[str]]:
    """Return a header and a row for each job: name, differing settings, metrics, and the reason if any job failed."""
    header, *rows = table(sweep.runs, sweep.folder, sweep.metric)
    header[0] = "job"
    if not sweep.failures:
        return [header, *rows]
    for row in rows:
        if row[0] in sweep.failures:
            row[row.index("not ended")] = "failed"
    begun = {row[0] for row in rows}
    rows += [[name, *[""] * (len(header) - 1)] for name in sweep.failures if name not in begun]
    return [[*header, "failure"], *([*row, sweep.failures.get(row[0], "")] for row in rows)]


def write_report(sweep: Sweep, importance: Mapping[str, float]) -> None:
    """Write the reports of the best run and of the sweep, and print their paths; errors become warnings."""
    from headstart.sweeps.report import report_sweep

    try:
        for line in call(report_sweep, sweep, dict(importance)):
            print(printable(line))
    except (HeadstartError, FailedError, DiedError) as error:
        log.warning("there is no report of the sweep: %s", error)
