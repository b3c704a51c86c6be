"""The control panel: every choice composes, and every mistake gets one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from headstart.config import optimizer_schema
from headstart.config.check import check, to_yaml
from headstart.utils.errors import ConfigError
from tests.helpers.commands import command
from tests.helpers.runs import CONF, choices, composed

REQUIRED = {"data=imagefolder": ["data.root=x"], "model=torchvision": ["model.name=x"], "model=timm": ["model.name=x"]}
GROUPS = ("data", "model", "head", "augment", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in choices(group)])
def test_every_choice_composes(choice: str) -> None:
    composed(choice, *REQUIRED.get(choice, []))


def test_a_required_key_is_requested() -> None:
    for choice, (required,) in REQUIRED.items():
        key = required.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"{key} is not set: give it on the command line, {key}=VALUE"):
            composed(choice)


def test_top_level_keys_reach_down() -> None:
    config = composed("epochs=7", "batch_size=5", "lr=0.5")
    assert (config.trainer.max_epochs, config.data.batch_size, config.optimizer.lr) == (7, 5, 0.5)


def test_auto_is_accepted_for_lr_and_batch_size() -> None:
    config = composed("lr=auto", "batch_size=auto")
    assert (config.lr, config.optimizer.lr, config.batch_size, config.data.batch_size) == ("auto",) * 4
    assert config.data.first_batch_size == 32


def test_command_line_beats_experiment_beats_defaults() -> None:
    assert composed("freeze=false").epochs == 30
    assert composed("experiment=emergency_cnn").epochs == 15
    assert composed("experiment=emergency_cnn", "epochs=3").epochs == 3
    assert composed("experiment=emergency_cnn", "model=resnet18").model.name == "resnet18"


BESIDE = [
    [f"{group}={name}" for name in choices(group) if name != "lbfgs"]  # which few others fit: test_fitted_head.py
    for group in ("head", "augment", "optimizer", "scheduler", "trainer", "callbacks", "logger")
]
# Each choice of each group in one of these: as many as the largest group has.
COMBINATIONS = [tuple(names[i % len(names)] for names in BESIDE) for i in range(max(map(len, BESIDE)))]


@pytest.mark.parametrize("setting", ["", "model=resnet34", "folds=5", "seed=3", "monitor=val/loss", "data=pets"])
def test_the_default_fits_a_linear_head_to_its_optimum(setting: str) -> None:
    config = composed(*setting.split())
    assert config.optimizer.name == "lbfgs"
    assert (config.lr, config.epochs) == (None, None)


@pytest.mark.parametrize(
    "setting",
    [
        "lr=1e-3",
        "lr=auto",
        "epochs=30",
        "trainer.max_epochs=30",
        "batch_size=64",
        "data.batch_size=64",
        "batch_size=auto",
        "scheduler=cosine",
        "head=mlp",
        "freeze=false",
        "freeze=block1",
        "finetune=full",
        "finetune=auto",
        "features=off",
        "augment=flip",
        "augment.random_erasing=0.1",
        "loss.mixup=0.2",
        "data.sampling=balanced",
        "callbacks.ema=0.99",
        "trainer=debug",
        "trainer.limit_train_batches=2",
        "trainer.gradient_clip_val=1",
        "trainer.strategy=ddp_spawn",
        "trainer.strategy=ddp_fork",
    ],
)
def test_what_only_gradient_descent_has_makes_the_default_adam(setting: str) -> None:
    config = composed(setting)
    assert config.optimizer.name == "adam"
    assert isinstance(config.optimizer, optimizer_schema.Gradient)
    assert (config.lr, config.optimizer.lr) == ((1e-3, 1e-3) if not setting.startswith("lr=") else (config.lr,) * 2)
    assert config.epochs == 30


@pytest.mark.parametrize(("setting", "expected"), [("", "lbfgs"), ("freeze=false", "adam")])
def test_a_weight_decay_goes_to_the_optimizer_that_the_default_is(setting: str, expected: str) -> None:
    optimizer = composed("optimizer.weight_decay=0.1", *setting.split()).optimizer
    assert (optimizer.name, optimizer.weight_decay) == (expected, 0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_names_its_optimizer(experiment: str) -> None:
    assert "override /optimizer: " in (CONF / "experiment" / f"{experiment}.yaml").read_text()


@pytest.mark.parametrize("experiment", choices("experiment"))
@pytest.mark.parametrize("others", COMBINATIONS, ids="-".join)
def test_every_experiment_takes_every_other_choice(experiment: str, others: tuple[str, ...]) -> None:
    composed(f"experiment={experiment}", *others)


def test_labels_that_are_numbers_are_text() -> None:
    classes = {"0": "cat", "1": "dog"}
    assert composed("data=csv", "data.classes={0: cat, 1: dog}").data.classes == classes  # type: ignore[attr-defined]


def test_loggers_add_up() -> None:
    logger = composed("logger=[tensorboard,csv]").logger
    assert (logger.tensorboard, logger.csv) == (True, True)


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("layer3", "layer3")])
def test_freeze_takes_a_truth_or_a_name(value: str, expected: object) -> None:
    assert composed(f"freeze={value}").freeze == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=fast", "lr=fast: expected a number above 0, or auto"),
        ("lr=true", "lr: Value 'True' .* expected a number above 0, or auto"),
        ("lr=-1", "lr=-1: expected a number above 0"),
        ("batch_size=large", "batch_size=large: expected a whole number of at least 1, or auto"),
        ("batch_size=2.5", "batch_size: Value '2.5' .* expected a whole number of at least 1, or auto"),
        ("lr=nan", "lr=nan: expected a number above 0"),
        ("epochs=0", "epochs=0: expected a whole number of at least 1"),
        ("epochs=2.5", "epochs: Value '2.5' .* expected a whole number of at least 1"),
        ("freeze=1", "freeze: .* expected true, false or the name of the last block to freeze"),
        ("data.val_fraction=1", "data.val_fraction=1.0: expected a number of at least 0 and below 1"),
        ("data.mean=[1,1]", "data.mean=.* expected three numbers"),
        ("data.mean=[125,120,100]", "data.mean=.* expected three numbers in"),
        ("trainer.limit_val_batches=0", "limit_val_batches=0: expected a whole number of batches of at least 1"),
        ("trainer.precision=16", "trainer.precision: .*expected one of .*16-mixed"),
        ("monitor=test/accuracy", "monitor=test/accuracy: expected a metric of train or val"),
        ("optimizer.name=admw", "no such optimizer. Did you mean 'adamw'"),
        ("data.source=stl11", "no such data. Did you mean 'stl10'"),
        ("+freze=true", "unknown key 'freze'. Did you mean 'freeze'"),
        ("++data.bach_size=3", "unknown key 'bach_size' in 'data'. Did you mean 'batch_size'"),
        ("optimizer=sgd +optimizer.momentun=0.9", "unknown key 'momentun' in 'optimizer'. Did you mean 'momentum'"),
        ("+optimizer.momentum=0.1", "unknown key 'momentum' in 'optimizer'"),
        ("optimizer=lbfgs epochs=3", "optimizer=lbfgs with epochs=3: it stops at the optimum: leave epochs out"),
        ("optimizer=lbfgs trainer.max_epochs=3", "optimizer=lbfgs with epochs=3: it stops at the optimum"),
        ("optimizer=lbfgs lr=0.1", "optimizer=lbfgs with lr=0.1: it has no learning rate: leave lr out"),
        ("optimizer=lbfgs batch_size=8", "optimizer=lbfgs with batch_size=8: it takes one step for all images"),
        ("folds=1", "folds=1: expected a whole number of at least 2"),
        ("data.folds=5", "data.folds=5: the number of folds is set by folds"),
        ("data.fold=3", "data.fold=3: of how many folds. Add folds"),
        ("loss.class_weights=balance", "loss.class_weights: .*expected one of .*balanced"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*override.split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.fold=6", "data.fold=6: expected a whole number from 1 to 5, the number of folds"),
        ("ckpt_path=last.ckpt", "ckpt_path: folds=5 trains several models, and the same command continues each"),
        ("trainer.devices=2", "folds=5 trains one model after another in one process.* use trainer.devices=1"),
        ("trainer.strategy=ddp", "folds=5 trains one model after another"),
        ("trainer=debug", "folds=5 gives every image an answer: leave out trainer=debug"),
        ("trainer.limit_test_batches=1", "folds=5 gives every image an answer"),
        ("scheduler=plateau", "monitor=val/accuracy, and the final model of folds=5 .* without a val split: take"),
    ],
)
def test_what_a_cross_validation_cannot_have_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("folds=5", override)


def test_a_config_without_folds_is_one_of_an_older_run(tmp_path: Path) -> None:
    expected = composed("lr=0.5")
    lines = to_yaml(expected).splitlines(keepends=True)
    older = [line for line in lines if line.strip().partition(":")[0] not in ("folds", "fold")]
    assert len(lines) - len(older) == 3
    (tmp_path / "config.yaml").write_text("".join(older))
    with initialize_config_dir(str(tmp_path)):
        assert check(compose("config")) == expected


def test_a_resolved_config_composes_to_itself(tmp_path: Path) -> None:
    first = composed("experiment=caltech101_vgg16", "seed=3", "batch_size=5", "data.batch_size=7")
    (tmp_path / "config.yaml").write_text(to_yaml(first))
    with initialize_config_dir(str(tmp_path)):
        assert check(compose("config")) == first
        again = check(compose("config", ["lr=0.5", "epochs=3", "batch_size=4"]))
    assert (again.optimizer.lr, again.trainer.max_epochs) == (0.5, 3)  # the top-level keys still reach down
    assert again.data.batch_size == 7  # but not to what had a value of its own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["freze=true"], "headstart: unknown key 'freze'. Did you mean 'freeze'"),
        (["data=stl11"], "Could not find 'data/stl11'"),
        (["lr=abc"], "expected a number above 0"),
        (["+freze=true"], "Did you mean 'freeze'"),
        (["experiment=typo"], "unknown key 'epocs'. Did you mean 'epochs'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nepocs: 3\n")
    result = command("--config-dir", tmp_path, f"hydra.run.dir={tmp_path}/run", *arguments)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_checking_does_not_import_torch() -> None:
    code = "import sys, headstart.config.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
