"""Fits linear heads on cached features: optimizer=lbfgs, scikit-learn's LogisticRegressionCV and Adam at ten rates.

    python benchmarks/heads.py ../shared             # every set at hand: seconds, log loss, accuracy
    python benchmarks/heads.py ../shared --draws 8   # repeated training subsets: accuracy by rule and by rate
    python benchmarks/heads.py --rows 4571 --classes 102 [--no-rival]  # random features of width 1280
    python benchmarks/heads.py --rows 1281167 --classes 1000 --width 768 --device cuda --no-rival

The folder holds `data/` and `weights/`. All get the same features, in this process. scikit-learn gets the same values
of C and the same folds, on standardised features, in float64, with its own tolerance. Adam's best rate is the one with
the highest validation accuracy, then the lowest validation loss. With a device, features lie in its memory, as those of
a run do that fit into a quarter of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import build_parser, compose_config, describe_machine
from torch import Tensor, nn
from torch.nn import functional as F

RATES = (1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 1e-1)
EPOCHS, PATIENCE, BATCH = 100, 10, 32
MOBILENET = ("model=mobilenet_v2", "model.weights={folder}/weights/mobilenet_v2-imagenet.pth")
SETS = {
    "digits": (),
    "vehicles": ("data=emergency", "data.root={folder}/data/emergency-vehicles", *MOBILENET),
    "ants and bees": (
        "data=imagefolder",
        "data.root={folder}/data/hymenoptera",
        "data.test_fraction=0",
        *MOBILENET,
    ),
    "three breeds": ("data=pets", "data.root={folder}/data/pets-3breeds", *MOBILENET),
}
Splits = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Head:
    """A fitted head, what it took, and its out-of-fold log loss, if it was cross-validated."""

    predict: Any
    seconds: float
    setting: str
    out_of_fold: float = float("nan")


def main() -> None:
    """Compare the heads on the sets at hand, on repeated subsets, or on random features."""
    parser = build_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="holds data/ and weights/")
    parser.add_argument("--draws", type=int, default=0, help="number of training subsets")
    parser.add_argument("--rows", type=int, default=0, help="random features instead of a folder")
    parser.add_argument("--classes", type=int, default=102)
    parser.add_argument("--width", type=int, default=1280, help="of random features")
    parser.add_argument("--device", default="cpu", help="of random features and the fit, such as cuda")
    parser.add_argument("--no-rival", action="store_true", help="leave scikit-learn and Adam out")
    arguments = parser.parse_args()
    print(describe_machine())
    if arguments.rows:
        splits = random_features(arguments.rows, arguments.classes, arguments.width, arguments.device)
        compare("random", splits, rivals=not arguments.no_rival)
    elif arguments.folder is None:
        parser.error("name the folder of data/ and weights/, or --rows")
    for name, splits in read_sets(arguments.folder) if not arguments.rows else ():
        if arguments.draws:
            compare_draws(name, splits, arguments.draws)
        else:
            compare(name, splits, rivals=not arguments.no_rival)


def read_sets(folder: Path) -> Iterator[tuple[str, Splits]]:
    """Yield the features and labels of each split of each set, computed unless they are cached."""
    from headstart.cache.build import build_batches
    from headstart.cache.feature_loaders import FeatureDataModule
    from headstart.data.build import build_data, open_images
    from headstart.data.splits import split_table
    from headstart.models.build import open_backbone
    from headstart.training.build import build_classifier, open_trainer
    from headstart.training.strategy import resolve_strategy

    for name, overrides in SETS.items():
        config = compose_config([override.format(folder=folder.resolve()) for override in overrides])
        trainer, _ = open_trainer(config, Path("unused"))
        images, backbone = open_images(config.data), open_backbone(config)
        data = build_data(config, images, backbone.preprocessing, 1)
        strategy, choice = resolve_strategy(config, backbone, data, trainer, len(images.class_names))
        classifier = build_classifier(config, images, strategy, choice, split_table(images))
        batches = build_batches(config, classifier.hparams, data, strategy, trainer, epochs_done=0)
        assert isinstance(batches.evaluation, FeatureDataModule)
        splits = {}
        for split in data.splits:
            parts = list(batches.evaluation.evaluation_dataloader(split))
            splits[split] = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        yield name, splits


def random_features(rows: int, classes: int, width: int = 1280, device: str = "cpu") -> Splits:
    """Return features that resemble those of a network: not negative, of different scales, classes that overlap."""
    drawn: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    centres, scales = torch.randn(classes, width, **drawn), torch.linspace(0.1, 2, width, device=device)
    splits = {}
    for split, count in (("train", rows), ("test", max(1000, rows // 10))):
        labels = torch.randint(classes, (count,), **drawn)
        noise = torch.randn(count, width, **drawn).mul_(7)
        splits[split] = noise.add_(centres[labels]).relu_().mul_(scales), labels
    return splits


def fit_lbfgs(features: Tensor, labels: Tensor) -> tuple[Head, Any]:
    """Fit as optimizer=lbfgs does: the path with its folds, then the head on all rows."""
    from headstart.training.fitted_head.fit import fit_at_once, fit_dtype
    from headstart.training.fitted_head.folded_rows import FoldedRows
    from headstart.training.fitted_head.path import PATH_DTYPE, best_point, inner_folds, weight_decay_path
    from headstart.training.fitted_head.rows import TrainingRows, spectrum_of

    start, device = time.perf_counter(), features.device
    rows = TrainingRows(lambda numbers: features[numbers.to(device)], labels, fit_dtype(device))
    spectrum, loss = spectrum_of(rows), unweighted(labels).to(rows.dtype)
    folds = torch.from_numpy(inner_folds(labels.cpu().numpy(), None)).to(device)
    folded = FoldedRows(rows, spectrum, folds, PATH_DTYPE)
    points = weight_decay_path(folded, loss)
    path_seconds = time.perf_counter() - start
    best = best_point(points)
    mean = folded.standardized_heads(best.heads).mean(dim=0)
    head = linear(*rows.standardization.fold(mean[:-1], mean[-1]))
    passes = fit_at_once(rows, spectrum, head, loss, best.precision / len(labels))
    seconds = time.perf_counter() - start  # the last head was read, so that a GPU has finished
    setting = (
        f"1/C {best.precision:.3g}, {len(points)} values in {sum(point.passes for point in points)} passes and "
        f"{path_seconds:.1f} s, then {passes} passes"
    )

    def predict(raw: Tensor) -> Tensor:
        return torch.cat([head(part.to(rows.dtype)) for part in torch.split(raw, 65_536)])

    return Head(predict, seconds, setting, best.loss), (rows, folded, points)


def unweighted(labels: Tensor) -> Any:
    """Return the loss without class weights."""
    from headstart.training.fitted_head.objective import Loss

    return Loss(torch.ones(int(labels.max()) + 1, dtype=torch.float64, device=labels.device))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a layer with these weights, of shape (width, classes), in their dtype and on their device."""
    head = nn.Linear(*weight.shape, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(bias)
    return head


def fit_sklearn(features: Tensor, labels: Tensor) -> Head:
    """Fit scikit-learn's LogisticRegressionCV to the same features, folds and values."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from headstart.training.fitted_head.path import PRECISIONS, inner_folds

    start = time.perf_counter()
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=[1 / precision for precision in PRECISIONS],
            cv=PredefinedSplit(inner_folds(labels.numpy(), None)),
            scoring="neg_log_loss",
            max_iter=1000,
            use_legacy_attributes=False,
            l1_ratios=(0,),
        ),
    )
    model.fit(features.double().numpy(), labels.numpy())
    seconds = time.perf_counter() - start

    def predict(raw: Tensor) -> Tensor:
        return torch.from_numpy(model.predict_log_proba(raw.double().numpy()))

    return Head(predict, seconds, f"1/C {1 / model[-1].C_:.3g}")


def fit_adam(splits: Splits, rate: float) -> tuple[Head, float, float]:
    """Fit by Adam with early stopping on the validation accuracy; return the head, and its accuracy and loss there."""
    start = time.perf_counter()
    torch.manual_seed(0)
    features, labels = splits["train"]
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.Adam(head.parameters(), rate)
    best, since = (-1.0, 0.0, head.state_dict()), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
        accuracy, loss = figures(head, *splits["val"])
        since += 1
        if (accuracy, -loss) > best[:2]:
            since = 0 if accuracy > best[0] else since
            best = accuracy, -loss, {name: value.clone() for name, value in head.state_dict().items()}
        if since >= PATIENCE:
            break
    head.load_state_dict(best[2])
    return Head(head, time.perf_counter() - start, f"lr {rate:g}"), best[0], -best[1]


@torch.no_grad()
def figures(predict: Any, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and log loss."""
    logits = predict(features)
    return float((logits.argmax(dim=1) == labels).double().mean()), float(F.cross_entropy(logits, labels))


def compare(name: str, splits: Splits, *, rivals: bool) -> None:
    """Print a row for each way to fit a head."""
    features, labels = splits["train"]
    print(f"\n{name}: {len(labels)} × {features.shape[1]}, {int(labels.max()) + 1} classes")
    ours, _ = fit_lbfgs(features, labels)
    heads = {"lbfgs": ours}
    memory = f"; {torch.cuda.max_memory_reserved() / 1e9:.1f} GB of the GPU's memory" if features.is_cuda else ""
    if rivals:
        heads["scikit-learn"] = fit_sklearn(features, labels)
    if rivals and "val" in splits:
        tried = [fit_adam(splits, rate) for rate in RATES]
        chosen = max(tried, key=lambda result: (result[1], -result[2]))[0]
        chosen.seconds = sum(result[0].seconds for result in tried)
        heads["Adam, ten rates"] = chosen
    for label, head in heads.items():
        found = {split: figures(head.predict, *rows) for split, rows in splits.items()}
        parts = [f"{split} {accuracy:.4f}, loss {loss:.4f}" for split, (accuracy, loss) in found.items()]
        out_of_fold = "" if np.isnan(head.out_of_fold) else f"; out-of-fold loss {head.out_of_fold:.4f}"
        ratio = f" ({head.seconds / ours.seconds:.1f} ×)" if head is not ours else ""
        print(
            f"  {label:16} {head.seconds:7.2f} s{ratio} {'; '.join(parts)}{out_of_fold} [{head.setting}{memory}]",
            flush=True,
        )


def compare_draws(name: str, splits: Splits, draws: int) -> None:
    """Print the mean accuracy on all other images of heads fitted to random subsets of the size of the train split."""
    features, labels = (torch.cat(parts) for parts in zip(*splits.values(), strict=True))
    per_class = 10 if name == "digits" else None
    size, found = len(splits["train"][1]), dict[str, list[tuple[float, float]]]()
    from headstart.training.fitted_head.fit import fit_at_once
    from headstart.training.fitted_head.rows import spectrum_of

    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(labels))
        if per_class:
            by_class = [order[labels.numpy()[order] == label][:per_class] for label in range(10)]
            train = np.concatenate(by_class)
        else:
            train = order[:size]
        test = np.setdiff1d(order, train)
        ours, (rows, folded, points) = fit_lbfgs(features[train], labels[train])
        best = min(points, key=lambda point: point.loss)
        strongest = next(point for point in points if point.loss <= best.loss + best.error)
        start = folded.standardized_heads(strongest.heads).mean(dim=0)
        cautious = linear(*rows.standardization.fold(start[:-1], start[-1]))
        fit_at_once(rows, spectrum_of(rows), cautious, unweighted(labels), strongest.precision / len(train))
        heads = {
            "lowest loss": ours.predict,
            "one standard error": lambda raw, head=cautious: head(raw.double()),
        }
        for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
            heads[f"Adam {rate:g}, 30 epochs"] = plain_adam(features[train], labels[train], rate)
        for label, predict in heads.items():
            found.setdefault(label, []).append(figures(predict, features[test], labels[test]))
    print(f"\n{name}: {draws} subsets of {size}, accuracy on the other {len(labels) - size}")
    for label, values in found.items():
        accuracies, losses = np.array(values).T
        error = np.std(accuracies, ddof=1) / len(values) ** 0.5
        less = accuracies - np.array(found["lowest loss"])[:, 0]
        paired = f"{less.mean():+.4f} ± {np.std(less, ddof=1) / len(values) ** 0.5:.4f}"
        print(f"  {label:22} {accuracies.mean():.4f} ± {error:.4f} ({paired}), loss {losses.mean():.4f}", flush=True)


def plain_adam(features: Tensor, labels: Tensor, rate: float) -> nn.Linear:
    """Fit by Adam for 30 epochs, without a validation split."""
    torch.manual_seed(0)
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.Adam(head.parameters(), rate)
    for _ in range(30):
        for rows in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
    return head


if __name__ == "__main__":
    main()
