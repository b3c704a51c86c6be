"""Lightning's Trainer, and what of its chatter a user sees."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger

from headstart.training.checkpoints import KeepBest, WholeCheckpoints
from headstart.utils.errors import ConfigError, DiskError, ProcessError, brief, has_no_room, no_room, suggestion

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def quiet_lightning() -> None:
    """Leaves Lightning's warnings, and takes its advertisements and echoes of the settings out of the log."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # It cannot see that torchmetrics has gathered the figures of all processes.
    warnings.filterwarnings(
        "ignore", message=r".*recommended to use `self.log\(.*sync_dist=True\)`", module="lightning"
    )
    # It warns of modules in evaluation mode: frozen ones are, on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode", module="lightning")
    # An evaluation has no logger, on purpose; without logger=True, `trainer.test` would not return the figures.
    warnings.filterwarnings("ignore", message=r"You called `self.log\(.*logger=True\)` but have no", module="lightning")
    # A run that is resumed in its own folder finds its checkpoints there; others are refused: see `check_folder`.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty", module="lightning")
    # Lightning 2.6 asks torch 2.15 in a way that torch is about to drop; nothing that a user can change.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", module="lightning")


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next tensor, from now on and in this whole process.

    glibc gives large blocks back to the kernel as soon as they are freed, and gets every page of them zeroed anew at
    the next step: up to a third of the time of training on a CPU (benchmarks/freed_memory.py). CUDA's tensors have a
    cache for the same reason. Libraries that cannot be told so (macOS, musl) are left as they are.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)  # no block has a mapping of its own, which would end with it
        library.mallopt(M_TRIM_THRESHOLD, -1)  # nor is the end of the heap given back


def build_trainer(callbacks: list[pl.Callback], loggers: list[Logger], settings: dict[str, Any]) -> pl.Trainer:
    """Lightning's Trainer.

    Args:
        callbacks: what watches the run.
        loggers: where the scalars go.
        settings: the Trainer's own arguments, as `conf/trainer/` names them.

    Raises:
        ConfigError: the Trainer cannot be had on this machine.
    """
    settings = settings | {"precision": chosen_precision(settings["precision"], settings["accelerator"])}
    # TensorFloat-32 for what mixed precision leaves in float32. Plain float32 stays what PyTorch has it be: matrix
    # products in full, convolutions in TensorFloat-32.
    torch.set_float32_matmul_precision("high" if "mixed" in settings["precision"] else "highest")
    try:
        trainer = pl.Trainer(
            callbacks=callbacks,
            logger=loggers,
            plugins=[WholeCheckpoints()],
            enable_checkpointing=any(isinstance(callback, KeepBest) for callback in callbacks),
            enable_model_summary=False,  # the table at the end counts parameters
            use_distributed_sampler=False,  # ours share the images out, none of them twice in evaluation
            **settings,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        names = ("accelerator", "devices", "strategy", "precision")
        asked = " ".join(f"trainer.{name}={settings[name]}" for name in names)
        raise ConfigError(
            f"Lightning cannot run here with {asked}: {str(error).strip()} trainer=default takes what is there."
        ) from None
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    return trainer


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Says how to go on where a run is stopped from outside: a disk is full, or another process of it is gone.

    Args:
        folder: the run folder.

    Raises:
        DiskError: there is no room for a file.
        ProcessError: another process is gone, which the network library would say in words of its own.
    """
    try:
        yield
    except DiskError as error:
        raise DiskError(f"{error} {_resume(folder)}.") from error
    except OSError as error:  # such as of a logger
        if not has_no_room(error):
            raise
        raise DiskError(f"{no_room(error.filename or folder / 'a file')} {_resume(folder)}.") from error
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise ProcessError(
            f"another process of this run is gone: killed, out of memory, its machine lost, or stopped by an error "
            f"that it has told above. {_resume(folder)}. ({brief(error)})"
        ) from error


def _resume(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    return f"Resume by ckpt_path={last}" if last.exists() else "No epoch was finished: start anew"


def chosen_precision(asked: str, accelerator: str) -> str:
    """What "auto" means here: mixed precision on a GPU, in bfloat16 if it computes with it, and float32 elsewhere."""
    if asked != "auto":
        return asked
    if accelerator not in ("auto", "gpu") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def check_monitor(monitor: str, measured: Sequence[str]) -> None:
    """Makes sure that the monitored metric will be measured.

    Args:
        monitor: the metric.
        measured: of each split, without the split.

    Raises:
        ConfigError: it will not; the message lists what is.
    """
    known = [f"{split}/{name}" for split in ("train", "val") for name in measured]
    if monitor not in known:
        raise ConfigError(
            f"monitor={monitor}: this is not measured here (top5_accuracy is, with more than five classes)."
            f"{suggestion(monitor, known)} There are {', '.join(known)}."
        )
