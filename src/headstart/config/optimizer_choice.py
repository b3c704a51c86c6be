"""What speaks against fitting a head to its optimum, and the choice that `optimizer=auto` makes by it."""

from __future__ import annotations

from collections.abc import Iterator

from headstart.config.schema import Config


def fits_head(config: Config) -> bool:
    """Tell whether `optimizer=auto` is lbfgs, for a config with optimizer=lbfgs.

    It is where lbfgs applies, the features of all images can be cached, and nothing is set that only gradient descent
    has. Views of augmented images could be rows of the fit, but who augments expects a new view in every epoch.
    """
    trainer = config.trainer
    limits = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches)
    partial = trainer.fast_dev_run or any(isinstance(limit, int) or limit != 1 for limit in limits)
    forks = any(word in trainer.strategy for word in ("spawn", "fork", "notebook"))  # processes that share no features
    return not (config.augment.is_random or partial or forks or any(against_lbfgs(config)))


def against_lbfgs(config: Config) -> Iterator[str]:
    """Yield a message for each setting with which a head cannot be fitted to its optimum."""
    trainer, adam = config.trainer, "or take optimizer=adam"
    one_step = f"it takes one step for all images, and this is for steps of a batch: leave it out, {adam}"
    reasons = (
        (config.head.name != "linear", f"head={config.head.name}", f"it fits a linear head: take head=linear, {adam}"),
        (
            config.freeze is not True,
            f"freeze={config.freeze} finetune={config.finetune.name}",
            "it fits a head on a frozen backbone: add freeze=true, or take optimizer=adamw",
        ),
        (config.features.name == "off", "features=off", f"it needs cached features: take features=auto, {adam}"),
        (
            config.loss.mixes,
            "loss.mixup or loss.cutmix",
            f"mixed images have no features to cache: leave them out, {adam}",
        ),
        (config.lr is not None, f"lr={config.lr}", f"it has no learning rate: leave lr out, {adam}"),
        (
            trainer.max_epochs is not None,
            f"epochs={trainer.max_epochs}",
            f"it stops at the optimum: leave epochs out, {adam}; optimizer.max_iter limits the passes",
        ),
        (
            config.data.batch_size is not None,
            f"batch_size={config.data.batch_size}",
            f"it takes one step for all images: leave batch_size out, {adam}",
        ),
        (
            config.scheduler.name != "none",
            f"scheduler={config.scheduler.name}",
            f"it has no learning rate: leave the scheduler out, {adam}",
        ),
        (
            config.data.sampling == "balanced",
            "data.sampling=balanced",
            "it sees every image equally often: take loss.class_weights=balanced",
        ),
        (config.callbacks.ema is not None, f"callbacks.ema={config.callbacks.ema}", one_step),
        (
            trainer.gradient_clip_val is not None,
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}",
            one_step,
        ),
        (
            trainer.accumulate_grad_batches != 1,
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}",
            one_step,
        ),
    )
    yield from (f"optimizer=lbfgs with {setting}: {why}." for applies, setting, why in reasons if applies)
