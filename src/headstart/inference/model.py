"""Model, a trained classifier for inference that needs no Lightning, Hydra, training data or download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.data.image_io import as_image
from headstart.data.preprocessing import Preprocessing, Transform, evaluation_transform, tta_transform
from headstart.data.workers import exit_with_parent, lower_priority, workers_for
from headstart.models.model_folder import Artifact
from headstart.models.network import build_network
from headstart.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from headstart.data.image_io import ImageLike
    from headstart.runs.predictions import Evaluation

TTA = Literal["flip", "five"]
CPU_BATCH, GPU_BATCH = 8, 64  # MobileNetV2 on two cores: 51 images a second at 8, 36 at 32; see benchmarks/README.md


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        class_name: the most probable class.
        probability: its softmax probability, in [0, 1].
        top: class names and probabilities, the most probable first.
    """

    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]


class Model:
    """A trained classifier for inference.

    Args:
        artifact: the contents of a model folder or checkpoint.
        device: the device to compute on; None takes a GPU if there is one.

    Attributes:
        class_names: class names in the order of the logits.
        preprocessing: the preprocessing that the network expects.
        temperature: the divisor of the logits before the softmax, which calibrates the probabilities (temperature
            scaling). It is fitted on validation images at the end of a run, and is 1 for a checkpoint.
        path: the model folder or checkpoint.
        run_folder: the run folder that contains it, or None.
        description: the contents of model.json, such as "metrics".
        device: the device to compute on.
        network: a module in evaluation mode from preprocessed float32 images of shape (batch, 3, height, width) to
            logits of shape (batch, len(class_names)).
        transform: the evaluation transform from an image to the network's input.

    Raises:
        ConfigError: the device is not available.
        ModelError: the weights do not fit the described network.
    """

    def __init__(self, artifact: Artifact, device: str | torch.device | None = None) -> None:
        self.description = artifact.description
        self.path, self.run_folder = artifact.path, artifact.run_folder
        self.class_names: tuple[str, ...] = tuple(artifact.description["class_names"])
        self.temperature = float(artifact.description.get("temperature", 1.0))
        self.preprocessing = Preprocessing.from_dict(artifact.description["preprocessing"])
        self.device = _device(device)
        network = build_network(artifact)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.transform = evaluation_transform(self.preprocessing)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        tta: TTA | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Classify one image or several.

        Args:
            images: one or several of: a path; a PIL image; an array of shape (height, width) or (height, width, 1, 3 or
                4); a tensor of shape (1, 3 or 4, height, width). Arrays and tensors hold pixels as uint8, uint16, or
                floats in [0, 1]. An array or tensor with one more dimension is a batch of images.
            top: the number of classes to return for each image.
            tta: test-time augmentation. "flip" averages the probabilities of the image and its mirror image, "five"
                those of the centre and four corner crops (Krizhevsky et al., 2012, section 4.1).
            batch_size: images per batch; None takes 8 on a CPU and 64 on a GPU.
            num_workers: processes that decode files. None starts one per core if there are more than a few files and
                processes are forked. Where they are not forked, a script that sets it needs `if __name__ ==
                "__main__":`.

        Returns:
            A `Prediction` for one image, or a list of them in the order of the images.

        Raises:
            ConfigError: `top` is less than 1.
            DataError: an image cannot be read or has another shape or dtype, or its logits are not finite.
        """
        one = _is_one(images)
        many: Sequence[ImageLike] = [images] if one else list(images)  # type: ignore[arg-type, list-item]
        predictions = []
        for result in self.predict_each(many, top=top, tta=tta, batch_size=batch_size, num_workers=num_workers):
            if isinstance(result, DataError):
                raise result
            predictions.append(result)
        return predictions[0] if one else predictions

    def predict_each(
        self,
        images: Sequence[ImageLike],
        *,
        top: int = 5,
        tta: TTA | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Iterator[Prediction | DataError]:
        """Classify images lazily, in order, with few of them in memory at a time; the arguments are those of `predict`.

        Yields:
            For each image its prediction, or the error that explains why there is none.

        Raises:
            ConfigError: `top` is less than 1; raised when iteration begins.
        """
        if top < 1:
            raise ConfigError(f"top={top}: expected the number of classes to return, 1 or more.")
        for logits in self.logits_each(images, tta=tta, batch_size=batch_size, num_workers=num_workers):
            if isinstance(logits, DataError):
                yield logits
                continue
            if not logits.isfinite().all():
                yield DataError(f"{self.path}: its logits are not finite. Training diverged: try a lower lr.")
                continue
            # With test-time augmentation, average the probabilities over the views.
            probabilities, classes = (
                (logits / self.temperature).softmax(dim=1).mean(dim=0).sort(descending=True, stable=True)
            )
            names = [self.class_names[index] for index in classes[:top].tolist()]
            ranked = tuple(zip(names, probabilities[:top].tolist(), strict=True))
            yield Prediction(*ranked[0], ranked)

    def logits_each(
        self,
        images: Sequence[ImageLike],
        *,
        tta: TTA | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Iterator[Tensor | DataError]:
        """Compute the logits of images lazily, in order; the arguments are those of `predict`.

        Yields:
            For each image, float32 logits of shape (views, classes) on the CPU, with one view if `tta` is None; or its
            error.
        """
        files = all(isinstance(image, str | Path) for image in images)
        if num_workers is None:
            # Processes that are not forked import the caller's script again, so they are opt-in.
            forked = torch.multiprocessing.get_start_method() == "fork"
            num_workers = workers_for(len(images)) if forked and files else 0
        transform = tta_transform(self.preprocessing, tta) if tta else self.transform
        loader = DataLoader(
            _PreprocessedImages(images, transform),
            batch_size=batch_size or (CPU_BATCH if self.device.type == "cpu" else GPU_BATCH),
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=lower_priority if self.device.type == "cpu" else exit_with_parent,
            generator=torch.Generator(),  # keeps the caller's random state unchanged
        )
        for views, errors in loader:
            logits = iter(torch.split(self.logits(views.flatten(0, 1)), views.shape[1]) if len(views) else ())
            for error in errors:
                yield error or next(logits)

    def evaluate(self, *arguments: str | Path, split: str | None = None, tta: TTA | None = None) -> Evaluation:
        """Evaluate the model on labelled images, with classes matched by name.

        Args:
            *arguments: a folder with a subfolder for each class; or overrides as for train.py, for data (`data=stl10
                data.root=FOLDER`) and hardware (`trainer=gpu`). Without a folder or `data=`, the data of the model's
                run are used with the same splits; `data.root=` sets their present path. Other data are not split: every
                image of their own test, val or train split is evaluated.
            split: "test", "val" or "train"; None takes the first of these that the data have.
            tta: test-time augmentation; see `predict`.

        Returns:
            Metrics, labels and model outputs of the split.

        Raises:
            ConfigError: an override does not fit, or the model lies in no run folder and no data are named.
            DataError: the images cannot be used, the split does not exist, or the model knows none of the classes.
        """
        from headstart.inference.evaluate import evaluate  # imported late: it needs Lightning and Hydra

        return evaluate(self.path, *arguments, split=split, tta=tta)

    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits of preprocessed images.

        Args:
            images: float32 tensor of shape (batch, 3, height, width), such as a batch of outputs of `transform`.

        Returns:
            float32 logits of shape (batch, classes) on the CPU.
        """
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode():
            logits: Tensor = self.network(images)
        return logits.float().cpu()


class _PreprocessedImages(Dataset[Tensor | DataError]):
    """A dataset of preprocessed images of shape (views, 3, height, width), or the error where one cannot be read."""

    def __init__(self, images: Sequence[ImageLike], transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            views = self.transform(as_image(self.images[index]))
            return views if views.ndim == 4 else views[None]
        except DataError as error:
            return error


def _collate(items: list[Tensor | DataError]) -> tuple[Tensor, list[DataError | None]]:
    """Return a batch of the readable images, (images, views, 3, height, width); and each image's error or None."""
    views = [item for item in items if isinstance(item, Tensor)]
    errors = [item if isinstance(item, DataError) else None for item in items]
    return torch.stack(views) if views else torch.empty(0, 1, 3, 1, 1), errors


def _is_one(images: object) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim <= 3
    return isinstance(images, str | Path | Image.Image)


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # NotImplementedError, for "meta", is a RuntimeError
        raise ConfigError(f"device={name} is not available ({str(error).splitlines()[0]}). Use cpu.") from None
    return torch.device(name)
