"""Lightning Trainer: build it, silence unhelpful warnings, handle errors that stop it."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger

from headstart.config.optimizer_schema import LBFGS
from headstart.config.schema import USUAL_MONITOR, Config
from headstart.training.checkpoints import AtomicCheckpointIO, BestCheckpoint
from headstart.utils.errors import (
    ConfigError,
    DiskError,
    ProcessError,
    disk_full_message,
    format_error,
    is_disk_full,
    suggestion,
)

NO_VAL = "there is no val split to measure it on, because of data.val_fraction=0"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def quiet_lightning() -> None:
    """Hide Lightning's info messages, and those of its warnings that do not apply to headstart."""
    for module in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{module}").setLevel(logging.WARNING)
    # It does not know that torchmetrics has already synchronised the metrics of all processes.
    warnings.filterwarnings(
        "ignore", message=r".*recommended to use `self.log\(.*sync_dist=True\)`", module="lightning"
    )
    # It warns of a GPU that `trainer=cpu` leaves alone on purpose.
    warnings.filterwarnings("ignore", message=r"GPU available but not used", module="lightning")
    # It warns of modules in evaluation mode, but frozen modules are meant to be.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode", module="lightning")
    # Evaluation deliberately has no logger, but without logger=True `trainer.test` would not return the metrics.
    warnings.filterwarnings("ignore", message=r"You called `self.log\(.*logger=True\)` but have no", module="lightning")
    # The folder of a resumed run contains its own checkpoints; `check_folder` refuses the folders of other runs.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty", module="lightning")
    # Without a val split there is deliberately nothing to validate on.
    warnings.filterwarnings("ignore", message=r"Total length of `tuple` across ranks is zero", module="lightning")
    # Lightning 2.6 uses a function that torch 2.15 deprecates; a user cannot change that.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", module="lightning")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor, for the rest of this process.

    By default, glibc returns large blocks to the kernel as soon as they are freed. At the next step the kernel has to
    zero every page again. That takes up to a third of the training time on a CPU (benchmarks/freed_memory.py). PyTorch
    caches CUDA memory for the same reason. Nothing is done if the C library has no `mallopt` (macOS, musl, Windows).
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)  # no separate mapping per block, which would be unmapped when it is freed
        library.mallopt(M_TRIM_THRESHOLD, -1)  # do not trim the end of the heap either


def build_trainer(callbacks: list[pl.Callback], loggers: list[Logger], settings: dict[str, Any]) -> pl.Trainer:
    """Build Lightning's Trainer from its own arguments, named as in `conf/trainer/`; `precision` may be "auto".

    It also sets torch's float32 matmul precision and, for training on a CPU, calls `keep_freed_memory`. Both apply to
    the whole process.

    Raises:
        ConfigError: this machine does not support the settings.
    """
    settings = settings | {"precision": resolve_precision(settings["precision"], settings["accelerator"])}
    # PyTorch's default, also with mixed precision, which rounds the products of networks anyway: heads are fitted in
    # float32, and with the 10 bits of TensorFloat-32 their answers would be wrong in the second digit.
    torch.set_float32_matmul_precision("highest")
    try:
        trainer = pl.Trainer(
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=any(isinstance(callback, BestCheckpoint) for callback in callbacks),
            enable_model_summary=False,  # the table of results counts parameters
            log_every_n_steps=1,  # metrics are logged once an epoch, and Lightning warns of fewer batches than steps
            num_sanity_val_steps=0,  # the data are checked before training starts
            use_distributed_sampler=False,  # our samplers shard the data, without duplicates in evaluation
            **settings,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        names = ("accelerator", "devices", "strategy", "precision")
        requested = " ".join(f"trainer.{name}={settings[name]}" for name in names)
        raise ConfigError(
            f"Lightning cannot run here with {requested}: {str(error).strip()} trainer=default fits every machine."
        ) from None
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    return trainer


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Add to errors raised in the `with` block how to resume the run: a full disk, or the end of another process.

    Raises:
        DiskError: the disk is full.
        ProcessError: another process of the run has ended, which torch.distributed reports as a RuntimeError.
    """
    try:
        yield
    except DiskError as error:
        raise DiskError(f"{error} {_resume(folder)}.") from error
    except OSError as error:  # such as one raised by a logger
        if not is_disk_full(error):
            raise
        raise DiskError(f"{disk_full_message(error.filename or folder / 'a file')} {_resume(folder)}.") from error
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise ProcessError(
            f"another process of this run has ended: killed, out of memory, its machine lost, or stopped by an error "
            f"that is printed above. {_resume(folder)}. ({format_error(error)})"
        ) from error


def _resume(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    return f"Resume by ckpt_path={last}" if last.exists() else "No epoch was finished: start the run again"


def resolve_precision(precision: str, accelerator: str) -> str:
    """Resolve the precision "auto" for this machine.

    Returns:
        `precision`, unless it is "auto". Then "bf16-mixed" on a CUDA GPU with native bfloat16, "16-mixed" on other CUDA
        GPUs, and "32-true" elsewhere.
    """
    if precision != "auto":
        return precision
    if accelerator not in ("auto", "gpu") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def choose_monitor(config: Config, splits: Collection[str]) -> str | None:
    """Return the metric that chooses the best epoch of a run, or None if its last epoch is to be kept.

    It is None if there is no val split to measure the usual metric on, for a fitted head, which is the best at its
    optimum, and for the final model of a cross-validation, as the folds have chosen how long that one is trained.

    Raises:
        ConfigError: there is no val split, and the monitored metric was set by name, or the schedule follows it.
    """
    if config.cross_validates or isinstance(config.optimizer, LBFGS):
        return None
    if "val" in splits or not config.monitor.startswith("val/"):
        return config.monitor
    if config.scheduler.name == "plateau":
        raise ConfigError(
            f"scheduler=plateau lowers the rate by monitor={config.monitor}, and {NO_VAL}: take another scheduler, "
            f"such as scheduler=cosine, or set data.val_fraction."
        )
    if config.monitor != USUAL_MONITOR and config.folds is None:  # with folds, it names what they are compared by
        raise ConfigError(
            f"monitor={config.monitor}: {NO_VAL}. Leave monitor out, and the last epoch is kept, or set "
            f"data.val_fraction."
        )
    return None


def check_monitor(monitor: str, metrics: Sequence[str]) -> None:
    """Check that the monitored metric, such as "val/accuracy", is one of these metrics of train or val.

    Raises:
        ConfigError: the metric is not among them; the message lists those that are.
    """
    known = [f"{split}/{name}" for split in ("train", "val") for name in metrics]
    if monitor not in known:
        raise ConfigError(
            f"monitor={monitor}: this metric is not measured here (top5_accuracy needs more than five classes)."
            f"{suggestion(monitor, known)} There are {', '.join(known)}."
        )
