"""Values of the config that contradict each other, with a message for each."""

from __future__ import annotations

import re
from collections.abc import Iterator

from headstart.config import data_schema, optimizer_schema
from headstart.config.optimizer_choice import against_lbfgs
from headstart.config.ranges import AUTO
from headstart.config.schema import Config


def contradictions(config: Config) -> Iterator[str]:
    """Yield a message for each set of values that contradict each other."""
    finetune = config.finetune
    if isinstance(config.optimizer, optimizer_schema.LBFGS):
        yield from against_lbfgs(config)
    if config.freeze is True and finetune.name != "none":
        yield (
            f"freeze=true trains the head alone, and finetune={finetune.name} the backbone, too: leave one of them "
            f"out, or freeze up to a block, such as freeze=layer2."
        )
    elif config.freeze is True and finetune.changed():
        keys = ", ".join(f"finetune.{name}" for name in finetune.changed())
        yield f"{keys}: freeze=true trains the head alone, and this is for the backbone. Add freeze=false."
    if finetune.name == AUTO and config.freeze is not False:
        yield f"finetune=auto decides what is frozen: leave freeze={config.freeze} out, or name a strategy."
    if finetune.name == AUTO and config.model.weights is None:
        yield "finetune=auto looks at the images with pretrained weights: for model.weights=null, take finetune=full."
    if config.data.sampling == "balanced" and config.loss.class_weights == "balanced":
        yield (
            "data.sampling=balanced and loss.class_weights=balanced would weigh the smaller classes twice: leave one "
            "of them out."
        )
    if isinstance(finetune.head_epochs, int) and config.epochs is not None and finetune.head_epochs >= config.epochs:
        yield (
            f"finetune.head_epochs={finetune.head_epochs}: the backbone never unfreezes in epochs={config.epochs}. "
            f"Give more epochs, or freeze=true to train the head alone."
        )
    yield from _grouping_problems(config.data)
    yield from _fold_contradictions(config)


def _grouping_problems(data: data_schema.Data) -> Iterator[str]:
    """Yield a message if the groups of the images are given twice, or by an invalid regular expression."""
    if data.group_pattern is None:
        return
    try:
        re.compile(data.group_pattern)
    except re.error as error:
        yield (
            f"data.group_pattern={data.group_pattern}: expected a regular expression, such as '(scan\\d+)_', and this "
            f"is none: {error}."
        )
    if isinstance(data, data_schema.Csv) and data.group_column is not None:
        yield (
            f"data.group_column={data.group_column} and data.group_pattern={data.group_pattern} would group the images "
            f"twice: leave one of them out."
        )


def _fold_contradictions(config: Config) -> Iterator[str]:
    """Yield a message for each value that a cross-validation, or the run of one of its folds, cannot have."""
    fold, trainer = config.data.fold, config.trainer
    if config.data.folds != config.folds:
        yield f"data.folds={config.data.folds}: the number of folds is set by folds, such as folds=5."
    if fold is not None and config.folds is None:
        yield f"data.fold={fold}: of how many folds? Add folds, such as folds=5, or leave data.fold out."
    elif fold is not None and config.folds is not None and fold > config.folds:
        yield f"data.fold={fold}: expected a whole number from 1 to {config.folds}, the number of folds."
    if not config.cross_validates:
        return
    if config.ckpt_path is not None:
        yield (
            f"ckpt_path: folds={config.folds} trains several models, and the same command continues each from its own "
            f"checkpoint. Leave ckpt_path out, or start from weights by model.weights=PATH."
        )
    if config.scheduler.name == "plateau" and config.monitor.startswith("val/"):
        yield (
            f"scheduler=plateau lowers the rate by monitor={config.monitor}, and the final model of "
            f"folds={config.folds} is trained on all images, without a val split: take another scheduler, such as "
            f"scheduler=cosine, or monitor=train/loss."
        )
    if trainer.devices != 1 or trainer.num_nodes != 1 or trainer.strategy != "auto":
        yield (
            f"folds={config.folds} trains one model after another in one process, and a run on several devices needs "
            f"new processes: use trainer.devices=1 trainer.num_nodes=1 trainer.strategy=auto."
        )
    if trainer.fast_dev_run or trainer.limit_test_batches != 1.0 or isinstance(trainer.limit_test_batches, int):
        yield (
            f"folds={config.folds} gives every image an answer: leave out trainer=debug, trainer.fast_dev_run and "
            f"trainer.limit_test_batches."
        )
