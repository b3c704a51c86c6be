"""`headstart predict`: classes of images, as a table for people or rows for programs."""

from __future__ import annotations

import argparse
import json
import re
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

    Results = Iterator[tuple[str, Prediction | DataError]]  # image names with predictions or errors

HELP = "classify images"
FORMATS = ("csv", "json", "jsonl")
NAME_WIDTH = 60  # the maximum width of the name column in characters; longer names shift the rest of their line
SURROGATES = r"[\ud800-\udfff]"  # what Python decodes the bytes of file names to that are not UTF-8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a run folder, a model folder or a checkpoint")
    parser.add_argument(
        "inputs", metavar="SOURCE", nargs="+", help="an image, a folder, a quoted pattern, or a csv that names images"
    )
    parser.add_argument("--top", type=at_least(1), metavar="N", help="classes for each image (5)")
    parser.add_argument("--format", choices=FORMATS, help="for programs; without it, a table for people")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here; .csv, .json or .jsonl chooses the format")
    parser.add_argument("--images", metavar="FOLDER", help="base folder of the file names in a csv (its folder)")
    parser.add_argument("--column", metavar="NAME", help="the column of a csv that holds the file names")
    parser.add_argument("--tta", choices=("flip", "five"), help="average over a mirror image, or over five crops")
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    parser.add_argument(
        "--explain", type=Path, metavar="FOLDER", help="write a heat map of each image: which parts led to its class"
    )
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="images per batch (8, on a GPU 64)")
    parser.add_argument("--workers", type=at_least(0), metavar="N", help="processes that decode (one per core)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type that accepts whole numbers of at least `minimum`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {minimum} on")
        return int(text)

    return convert


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 if there is an image without a prediction, else 0.

    Raises:
        ConfigError: `--out` is a folder, or its suffix names no format.
        DataError: with `--strict`, an image cannot be read.
    """
    import headstart  # imported here, as it needs torch: help and wrong arguments are answered without it
    from headstart.inference.image_inputs import find_images
    from headstart.utils.files import write_atomically

    output_format, out = _output_format(arguments), arguments.out
    if out and out.is_dir():
        raise ConfigError(f"--out {out} is a folder: name the file to write.")
    if output_format and hasattr(sys.stdout, "reconfigure"):  # the same bytes on every system, for any file names
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    model = headstart.load(arguments.model, arguments.device)
    data = model.description.get("data", {})
    usual = data.get("image_column")
    inputs = find_images(arguments.inputs, images=arguments.images, column=arguments.column, usual=usual)
    for note in inputs.notes:
        say(note)

    failed: list[DataError] = []
    top = min(arguments.top or 5, len(model.class_names))
    write: Callable[[TextIO, Results], None]
    match output_format:
        case "csv" if arguments.top is None and out and inputs.column:
            write = partial(write_submission, column=inputs.column, data=data)
        case "csv":
            write = partial(write_csv, top=top)
        case "json":
            write = write_json
        case "jsonl":
            write = write_jsonl
        case _:
            width = max((len(one_line(image.name)) for image in inputs.images), default=0)
            write = partial(write_table, width=width, class_names=model.class_names)
    results = _predict(model, inputs, arguments, top, failed)
    if arguments.explain:
        from headstart.inference.explain.heatmap_files import HeatmapWriter  # imported here, as that takes seconds

        results = HeatmapWriter(model, arguments.explain).write_each(inputs.images, results)
    if out:
        write_atomically(out, lambda path: _write_file(path, write, results))
    else:
        write(sys.stdout, results)
    if failed:
        say(f"{len(failed)} of {len(inputs.images)} images have no prediction")
    return 1 if failed else 0


def _output_format(arguments: argparse.Namespace) -> str | None:
    if arguments.format or not arguments.out:
        return str(arguments.format) if arguments.format else None
    suffix = str(arguments.out.suffix.removeprefix("."))
    if suffix not in FORMATS:
        formats = ", ".join(FORMATS)
        raise ConfigError(f"--out {arguments.out}: choose a format by its ending, {formats}, or by --format.")
    return suffix


def _predict(model: Model, inputs: Inputs, arguments: argparse.Namespace, top: int, failed: list[DataError]) -> Results:
    """Yield the name of each image with its prediction, or its error, in order; print errors and append to `failed`.

    Raises:
        DataError: with `--strict`, an image cannot be read.
    """
    from headstart.data.workers import workers_for
    from headstart.utils.progress import progress_bar

    images = inputs.images
    predictions = model.predict_each(
        [image.path for image in images if image.error is None],
        top=top,
        tta=arguments.tta,
        batch_size=arguments.batch_size,
        num_workers=workers_for(len(images)) if arguments.workers is None else arguments.workers,
    )
    # No progress bar if the rows themselves appear on the terminal.
    shown = sys.stderr.isatty() and (arguments.out is not None or not sys.stdout.isatty())
    with progress_bar("Predicting", len(images), shown=shown, stderr=True) as advance:
        for image in images:
            result = image.error or next(predictions)
            if isinstance(result, DataError):
                if arguments.strict:
                    raise result
                say(str(result))
                failed.append(result)
            yield image.name, result
            advance(1)


def _write_file(path: Path, write: Callable[[TextIO, Results], None], results: Results) -> None:
    # surrogateescape preserves the bytes of file names that are not UTF-8.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write(file, results)


# --- formats -------------------------------------------------------------------------------------------------


def write_table(file: TextIO, results: Results, *, width: int, class_names: Sequence[str]) -> None:
    """Write a table for people: one line per image, with classes and probabilities.

    The column of names has the width of the longest one in characters, up to `NAME_WIDTH`.
    """
    width = min(max(width, len("image")), NAME_WIDTH)
    class_width = max(len(one_line(name)) for name in class_names)
    print(f"{'image':<{width}}  {'class':<{class_width}}  probability", file=file)
    for name, result in results:
        if isinstance(result, DataError):
            text = "no prediction: see above"
        else:
            cells = (f"{one_line(name):<{class_width}}  {probability:6.1%}" for name, probability in result.top)
            text = "   ".join(cells)
        print(f"{one_line(name):<{width}}  {text}", file=file, flush=True)


def write_csv(file: TextIO, results: Results, *, top: int) -> None:
    """Write CSV rows of image, class, probability, then the next of `top` classes, then the error if there is one.

    Cells that a spreadsheet would read as a formula get an apostrophe in front; see `csv_cell`.
    """
    further = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("class", "probability")]
    file.write(csv_text([("image", "class", "probability", *further, "error")]))
    for name, result in results:
        if isinstance(result, DataError):
            file.write(csv_text([(name, *[""] * 2 * top, str(result))]))
        else:
            file.write(csv_text([(name, *(value for ranked in result.top for value in ranked), "")]))


def write_submission(file: TextIO, results: Results, *, column: str, data: Mapping[str, Any]) -> None:
    """Write a CSV for a competition: the input's column of file names, and labels as in the training data.

    After an error, the label is empty. `data` describes the training data: `classes` (label -> class name) and
    `label_column`.
    """
    labels = {class_name: label for label, class_name in (data.get("classes") or {}).items()}
    file.write(csv_text([(column, data.get("label_column") or "label")], quoted=False))
    for name, result in results:
        class_name = "" if isinstance(result, DataError) else result.class_name
        file.write(csv_text([(name, labels.get(class_name, class_name))], quoted=False))


def write_jsonl(file: TextIO, results: Results) -> None:
    """Write one JSON object per line (JSON Lines)."""
    for name, result in results:
        print(_to_json(name, result), file=file, flush=True)


def write_json(file: TextIO, results: Results) -> None:
    """Write a JSON array with one object per image."""
    file.write("[")
    for index, (name, result) in enumerate(results):
        file.write((",\n" if index else "\n") + _to_json(name, result))
    file.write("\n]\n")


def _to_json(name: str, result: Prediction | DataError) -> str:
    if isinstance(result, DataError):
        values: dict[str, Any] = {"image": name, "error": str(result)}
    else:
        ranked = [{"class": class_name, "probability": probability} for class_name, probability in result.top]
        values = {"image": name, **ranked[0], "top": ranked}
    text = json.dumps(values, ensure_ascii=False)
    return json.dumps(values) if re.search(SURROGATES, text) else text  # JSON files are UTF-8
