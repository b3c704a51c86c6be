"""`headstart predict`: classes of images, as a table for people or rows for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from headstart.utils.console import one_line, say
from headstart.utils.errors import ConfigError, DataError
from headstart.utils.files import csv_text

if TYPE_CHECKING:
    from headstart.inference.image_inputs import Inputs
    from headstart.inference.model import Model, Prediction

    Answers = Iterator[tuple[str, Prediction | DataError]]

FORMATS = ("csv", "json", "jsonl")
NAME_WIDTH = 60  # the maximum width of the name column in characters; longer names shift the rest of their line


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("predict", help="classify images", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a run folder, a model folder or a checkpoint")
    parser.add_argument(
        "several", metavar="SOURCE", nargs="+", help="an image, a folder, a quoted pattern, or a csv that names images"
    )
    parser.add_argument("--top", type=at_least(1), metavar="N", help="classes for each image (5)")
    parser.add_argument("--format", choices=FORMATS, help="for programs; without it, a table for people")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here; .csv, .json or .jsonl chooses the format")
    parser.add_argument("--images", metavar="FOLDER", help="what the file names in a csv are relative to (its folder)")
    parser.add_argument("--column", metavar="NAME", help="the column of a csv that holds the file names")
    parser.add_argument("--tta", choices=("flip", "five"), help="average over a mirror image, or over five crops")
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    parser.add_argument(
        "--explain", type=Path, metavar="FOLDER", help="write a picture for each image: where it speaks for its class"
    )
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="images at a time (8, on a GPU 64)")
    parser.add_argument("--workers", type=at_least(0), metavar="N", help="processes that decode (one a core)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    parser.set_defaults(run=run)


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type that accepts whole numbers from `least` on.

    Args:
        least: the smallest number that is accepted.

    Returns:
        A function from text to int that raises `argparse.ArgumentTypeError` for other text.
    """

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {least} on")
        return int(text)

    return convert


def run(words: argparse.Namespace) -> int:
    """Run the command.

    Args:
        words: the parsed arguments.

    Returns:
        The exit status: 1 if there is an image without a prediction, else 0.

    Raises:
        ConfigError: `--out` is a folder, or its suffix names no format.
        DataError: with `--strict`, an image cannot be read.
    """
    import headstart  # imported here, as it needs torch: help and wrong arguments are answered without it
    from headstart.inference.image_inputs import find_images
    from headstart.utils.files import write_atomically

    kind = _format(words)
    if words.out and words.out.is_dir():
        raise ConfigError(f"--out {words.out} is a folder: name the file to write.")
    if kind and hasattr(sys.stdout, "reconfigure"):  # the same bytes on every system, for any file names
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    model = headstart.load(words.model, words.device)
    told = model.description.get("data", {})
    inputs = find_images(words.several, images=words.images, column=words.column, usual=told.get("image_column"))
    for note in inputs.notes:
        say(note)

    failed: list[DataError] = []
    top = min(words.top or 5, len(model.class_names))
    write: Callable[[TextIO, Answers], None]
    match kind:
        case "csv" if words.top is None and words.out and inputs.column:
            write = partial(write_submission, column=inputs.column, told=told)
        case "csv":
            write = partial(write_csv, top=top)
        case "json":
            write = write_json
        case "jsonl":
            write = write_jsonl
        case _:
            width = max((len(one_line(image.name)) for image in inputs.images), default=0)
            write = partial(write_table, width=width, class_names=model.class_names)
    answers = _answers(model, inputs, words, top, failed)
    if words.explain:
        from headstart.inference.explain.heatmap_files import HeatmapWriter  # imported here, as that takes seconds

        answers = HeatmapWriter(model, words.explain).write_each(inputs.images, answers)
    if words.out:
        write_atomically(words.out, lambda path: _write_file(path, write, answers))
    else:
        write(sys.stdout, answers)
    if failed:
        say(f"{len(failed)} of {len(inputs.images)} images have no answer")
    return 1 if failed else 0


def _format(words: argparse.Namespace) -> str | None:
    if words.format or not words.out:
        return str(words.format) if words.format else None
    kind = str(words.out.suffix.removeprefix("."))
    if kind not in FORMATS:
        raise ConfigError(f"--out {words.out}: choose a format by its ending, {', '.join(FORMATS)}, or by --format.")
    return kind


def _answers(model: Model, inputs: Inputs, words: argparse.Namespace, top: int, failed: list[DataError]) -> Answers:
    """Yield the name of each image with its prediction, or its error, in order.

    Args:
        model: the model.
        inputs: the images.
        words: the parsed arguments.
        top: the number of classes per prediction.
        failed: errors are appended to it, and printed, as they occur.

    Raises:
        DataError: with `--strict`, an image cannot be read.
    """
    from headstart.data.workers import workers_for
    from headstart.utils.progress import progress_bar

    images = inputs.images
    found = model.predict_each(
        [image.path for image in images if image.error is None],
        top=top,
        tta=words.tta,
        batch_size=words.batch_size,
        num_workers=workers_for(len(images)) if words.workers is None else words.workers,
    )
    # No progress bar if the rows themselves appear on the terminal.
    shown = sys.stderr.isatty() and (words.out is not None or not sys.stdout.isatty())
    with progress_bar("Predicting", len(images), shown=shown, stderr=True) as advance:
        for image in images:
            answer = image.error or next(found)
            if isinstance(answer, DataError):
                if words.strict:
                    raise answer
                say(str(answer))
                failed.append(answer)
            yield image.name, answer
            advance(1)


def _write_file(path: Path, write: Callable[[TextIO, Answers], None], answers: Answers) -> None:
    # surrogateescape keeps the bytes of file names that are not UTF-8.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write(file, answers)


# --- formats -------------------------------------------------------------------------------------------------


def write_table(file: TextIO, answers: Answers, *, width: int, class_names: Sequence[str]) -> None:
    """Write a table for people: one line per image, with classes and probabilities.

    Args:
        file: the file to write to.
        answers: image names with predictions or errors.
        width: the width of the longest image name, in characters; the column is at most `NAME_WIDTH` wide.
        class_names: all class names of the model, for the width of their column.
    """
    width = min(max(width, len("image")), NAME_WIDTH)
    names = max(len(one_line(name)) for name in class_names)
    print(f"{'image':<{width}}  {'class':<{names}}  probability", file=file)
    for name, answer in answers:
        shown = one_line(name)
        if isinstance(answer, DataError):
            print(f"{shown:<{width}}  no answer: see above", file=file, flush=True)
            continue
        ranked = "   ".join(
            f"{one_line(class_name):<{names}}  {probability:6.1%}" for class_name, probability in answer.top
        )
        print(f"{shown:<{width}}  {ranked}", file=file, flush=True)


def write_csv(file: TextIO, answers: Answers, *, top: int) -> None:
    """Write CSV rows of image, class, probability, then the next classes, then the error if there is one.

    Cells that a spreadsheet would read as a formula get an apostrophe in front; see `csv_cell`.

    Args:
        file: the file to write to.
        answers: image names with predictions or errors.
        top: the number of classes per row.
    """
    further = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("class", "probability")]
    file.write(csv_text([("image", "class", "probability", *further, "error")]))
    for name, answer in answers:
        if isinstance(answer, DataError):
            file.write(csv_text([(name, *[""] * 2 * top, str(answer))]))
        else:
            file.write(csv_text([(name, *(value for ranked in answer.top for value in ranked), "")]))


def write_submission(file: TextIO, answers: Answers, *, column: str, told: Mapping[str, Any]) -> None:
    """Write a CSV for a competition, with the column of file names and the labels in their original form.

    Args:
        file: the file to write to.
        answers: image names with predictions or errors; after an error, the label is empty.
        column: the name of the column of file names in the input CSV.
        told: the model's description of its training data: `classes` (label -> class name) and `label_column`.
    """
    labels = {class_name: label for label, class_name in (told.get("classes") or {}).items()}
    file.write(csv_text([(column, told.get("label_column") or "label")], quoted=False))
    for name, answer in answers:
        found = "" if isinstance(answer, DataError) else answer.class_name
        file.write(csv_text([(name, labels.get(found, found))], quoted=False))


def write_jsonl(file: TextIO, answers: Answers) -> None:
    """Write one JSON object per line (JSON Lines).

    Args:
        file: the file to write to.
        answers: image names with predictions or errors.
    """
    for name, answer in answers:
        print(_json(name, answer), file=file, flush=True)


def write_json(file: TextIO, answers: Answers) -> None:
    """Write a JSON array with one object per image.

    Args:
        file: the file to write to.
        answers: image names with predictions or errors.
    """
    file.write("[")
    for index, (name, answer) in enumerate(answers):
        file.write((",\n" if index else "\n") + _json(name, answer))
    file.write("\n]\n")


def _json(name: str, answer: Prediction | DataError) -> str:
    if isinstance(answer, DataError):
        values: dict[str, Any] = {"image": name, "error": str(answer)}
    else:
        ranked = [{"class": class_name, "probability": probability} for class_name, probability in answer.top]
        values = {"image": name, **ranked[0], "top": ranked}
    text = json.dumps(values, ensure_ascii=False)
    # JSON files are UTF-8, so escape names that are not valid UTF-8.
    return text if text.isascii() or _is_utf8(text) else json.dumps(values)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
