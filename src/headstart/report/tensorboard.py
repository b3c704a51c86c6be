"""TensorBoard events of a finished run: figures, texts, precision-recall curves and the embedding projector."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from headstart.data.dataset import Samples
from headstart.report.contents import Contents
from headstart.report.image_grids import load_thumbnail
from headstart.runs.finished import FinishedRun
from headstart.runs.predictions import Evaluation

SUFFIX = ".report"  # of the event file that a report writes and replaces
CURVED = 200  # most classes that get a precision-recall curve
DIMENSIONS = 50  # PCA components in the projector: its methods lose little, and 2048 take a minute
THUMBNAIL = 48  # side of a thumbnail in the projector, in pixels
# TensorBoard sorts by name, hence the numbers. Learning curves are scalars there already.
ORDER = (
    *("seen", "augmented", "confusion", "most_confused", "reliability", "class_accuracy", "accuracy_by_size"),
    *("examples", "worst", "lr_range"),
)


def write_pictures(folder: Path, contents: Contents, samples: Samples | None) -> None:
    """Add a report's charts, image grids, texts, precision-recall curves and embeddings to a run's TensorBoard events.

    Args:
        folder: the run's `tensorboard/`; the events of an earlier report are replaced.
        contents: the contents of the report.
        samples: the images of the reported split, for thumbnails in the projector; None shows points.
    """
    for former in folder.glob(f"events.*{SUFFIX}"):
        former.unlink()
    run, evaluation = contents.run, contents.run.evaluation
    step = int(run.metrics["epochs/run"] or 0)
    shutil.rmtree(folder / f"{step:05}", ignore_errors=True)  # the projector's files of an earlier report
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        for number, name in enumerate(ORDER, start=1):
            if file := contents.pngs.get(name):
                writer._get_file_writer().add_summary(_image_summary(f"images/{number}_{name}", file), step)
        writer.add_text("config", _text(f"```yaml\n{run.config}\n```"), step)
        writer.add_text("classes", _text(_class_table(contents.run)), step)
        for label, name in enumerate(run.class_names[:CURVED]):
            true = evaluation.labels == label
            if true.any() and evaluation.logits.isfinite().all():
                probabilities = evaluation.probabilities[:, label].numpy()
                writer.add_pr_curve(_text(f"{evaluation.split}/{name}"), true, probabilities, step)
        if evaluation.outputs.features.isfinite().all():
            contents.attempt("projector", lambda: _add_embedding(writer, evaluation, samples, step))


def _image_summary(tag: str, file: bytes) -> Summary:
    """Wrap an encoded PNG in a summary; `add_image` would need it decoded, and encode it again."""
    width, height = Image.open(io.BytesIO(file)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _text(text: str) -> str:
    """Return text that is valid UTF-8, with question marks for lone surrogates."""
    return text.encode(errors="replace").decode()


def _class_table(run: FinishedRun) -> str:
    """Return a Markdown table of the classes, with training images, evaluated images and accuracy."""
    matrix = run.evaluation.confusion
    rows = zip(run.class_names, run.train_counts, matrix.sum(axis=1), matrix.diagonal(), strict=True)
    lines = [
        f"| {name.replace('|', '/')} | {trained} | {images} | {f'{correct / images:.3f}' if images else ''} |"
        for name, trained, images, correct in rows
    ]
    return "\n".join([f"| class | train | {run.evaluation.split} | accuracy |", "| --- | --- | --- | --- |", *lines])


def _add_embedding(writer: SummaryWriter, evaluation: Evaluation, samples: Samples | None, step: int) -> None:
    """Add features to the embedding projector, with class names and thumbnails."""
    indices = evaluation.outputs.featured
    features = evaluation.outputs.features.float().numpy()
    if len(features) > DIMENSIONS < features.shape[1]:
        features = PCA(DIMENSIONS, svd_solver="randomized", random_state=0).fit_transform(features)
    names = evaluation.class_names
    rows = [
        [names[evaluation.labels[index]], names[evaluation.predicted[index]], Path(evaluation.images[index]).name]
        for index in indices
    ]
    # The metadata are a TSV file: no tabs or newlines in cells.
    cells = [[_text(" ".join(cell.split())) for cell in row] for row in rows]
    thumbnails = torch.stack([_thumbnail(samples, int(index)) for index in indices]) if samples else None
    writer.add_embedding(
        np.ascontiguousarray(features),
        metadata=cells,
        metadata_header=["class", "predicted", "image"],
        label_img=thumbnails,
        global_step=step,
        tag="features",
    )


def _thumbnail(samples: Samples, index: int) -> torch.Tensor:
    image = center_crop(resize(load_thumbnail(samples, index, 4 * THUMBNAIL), THUMBNAIL), THUMBNAIL)
    thumbnail: torch.Tensor = pil_to_tensor(image).float() / 255
    return thumbnail
