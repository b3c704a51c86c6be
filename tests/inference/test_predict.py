"""`headstart predict`: what is asked for, in order, in every format."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headstart.inference.image_inputs import find_images
from headstart.utils.errors import ConfigError, DataError, HeadstartError
from tests.helpers.commands import python
from tests.helpers.images import class_folders, make_bad_files, make_emergency, make_odd_images, write_csv
from tests.helpers.runs import RESNET18, SMALL, composed
from tests.inference.conftest import Predict


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_as_a_table_for_people(predict: Predict, folders: Path) -> None:
    status, out, err = predict(folders)
    lines = out.splitlines()
    assert (status, err, len(lines)) == (0, "", 21)
    assert lines[0].split() == ["image", "class", "probability"]
    for line in lines[1:]:
        name, class_name, probability, other, rest = line.split()
        assert Path(name).parent.name == class_name
        assert {class_name, other} == {"cat", "dog"}
        assert float(probability[:-1]) + float(rest[:-1]) == pytest.approx(100, abs=0.11)


def test_formats_for_programs_say_the_same(predict: Predict, folders: Path, tmp_path: Path) -> None:
    listed = rows(predict(folders, "--format", "csv")[1])
    objects = json.loads(predict(folders, "--format", "json")[1])
    lines = [json.loads(line) for line in predict(folders, "--format", "jsonl")[1].splitlines()]
    assert objects == lines
    assert [row["image"] for row in listed] == [item["image"] for item in objects]
    for row, item in zip(listed, objects, strict=True):
        assert (row["class"], float(row["probability"])) == (item["class"], item["probability"])
        assert item["top"][1] == {"class": row["class_2"], "probability": float(row["probability_2"])}
        assert row["error"] == ""
    for name in ("out.csv", "out.json", "out.jsonl"):
        assert predict(folders, "--out", tmp_path / name) == (0, "", "")
    assert rows((tmp_path / "out.csv").read_text()) == listed
    assert json.loads((tmp_path / "out.json").read_text()) == objects
    best = rows(predict(folders, "--format", "csv", "--top", 1)[1])[0]
    assert list(best) == ["image", "class", "probability", "error"]


def test_bad_images_are_reported_and_the_rest_is_answered(predict: Predict, tmp_path: Path) -> None:
    odd, bad = make_odd_images(tmp_path / "odd"), make_bad_files(tmp_path / "bad")
    sources = [tmp_path / "bad" / "gone.jpg", tmp_path / "bad", *odd.values()]
    status, out, err = predict(*sources, "--format", "csv")
    results = {Path(row["image"]).name: row for row in rows(out)}
    assert status == 1
    assert results.keys() == {*odd, *bad}
    for name, message in bad.items():
        assert results[name]["class"] == ""
        assert results[name]["error"].startswith(f"{tmp_path / 'bad' / name}: {message}")
        assert f"headstart: {results[name]['error']}\n" in err
    assert all(results[name]["class"] in ("cat", "dog") for name in odd)
    assert err.endswith(f"headstart: {len(bad)} of {len(bad) + len(odd)} images have no prediction\n")
    assert "no prediction: see above" in predict(*sources)[1]
    assert {"image", "error"} in [set(item) for item in json.loads(predict(*sources, "--format", "json")[1])]


def test_strict_stops_at_the_first_bad_image(predict: Predict, tmp_path: Path) -> None:
    make_bad_files(tmp_path)
    with pytest.raises(DataError, match="text.jpg: not an image"):
        predict(tmp_path / "text.jpg", tmp_path / "empty.jpg", "--strict", "--out", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_sources_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    class_folders(tmp_path, ("b", "a"), 2)
    (tmp_path / "c").mkdir()
    names = ("b", "a/*.jpg", "", "none/*.jpg", "c")
    sources = [*(str(tmp_path / name) for name in names), "gone.jpg"]
    inputs = find_images(sources)
    ab = [f"{tmp_path}/{name}/{index}.jpg" for name in "ab" for index in (0, 1)]
    assert [image.name for image in inputs.images] == [*ab[2:], *ab[:2], *ab, sources[3], sources[4], "gone.jpg"]
    assert str(inputs.images[-3].error) == f"{sources[3]}: no file matches this pattern."
    assert str(inputs.images[-2].error).startswith(f"{sources[4]}: no image in this folder. Images end in .jpg")
    assert inputs.notes == [f"1 files without an image extension were skipped in {tmp_path}: notes.txt"]
    deep = find_images([f"{tmp_path}/**/*.jpg"])
    assert [image.name for image in deep.images] == ab


def test_a_file_whose_name_is_a_pattern_is_a_file(tmp_path: Path) -> None:
    name = tmp_path / "holiday [1].jpg"
    name.touch()
    assert [image.path for image in find_images([str(name)]).images] == [str(name)]


@pytest.mark.parametrize("source", ["{}", "{}/**/*.jpg"])
def test_links_that_form_a_cycle_and_hidden_files_are_passed_over(source: str, tmp_path: Path) -> None:
    class_folders(tmp_path, ("a",), 2)
    for name in ("up", "again"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    (tmp_path / "a" / ".hidden.jpg").touch()
    assert len(find_images([source.format(tmp_path)]).images) == 2


def test_a_relative_pattern_and_an_empty_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, ("a",), 2)
    monkeypatch.chdir(tmp_path)
    assert [image.path for image in find_images(["a/*.jpg"]).images] == ["a/0.jpg", "a/1.jpg"]
    assert str(find_images([""]).images[0].error) == "'': the name is empty."


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.jpg\nb.jpg\n", "list.csv has no header: expected a first line"), ("", "list.csv has no header: expected")],
)
def test_a_table_without_a_header_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_images([str(tmp_path / "list.csv")])


def test_a_table_without_rows_or_with_odd_cells(predict: Predict, folders: Path, tmp_path: Path) -> None:
    empty = write_csv(tmp_path / "empty.csv", [("image",)])
    assert predict(empty)[0] == 1
    odd = write_csv(tmp_path / "odd.csv", [(" image ", "id"), ("cat/0.jpg", 1), ("a\0b.jpg", 2)])
    status, out, _ = predict(odd, "--images", folders, "--column", "image", "--format", "csv")
    assert status == 1
    assert [row["class"] for row in rows(out)] == ["cat", ""]


def test_a_table_is_answered_row_by_row(predict: Predict, folders: Path, tmp_path: Path) -> None:
    names = ["dog/1.jpg", "cat/2.jpg", "../secret.jpg", "", "dog/gone.jpg", "cat/2.jpg"]
    table = write_csv(tmp_path / "list.csv", [("id", "picture"), *enumerate(names)])
    status, out, _ = predict(table, "--column", "picture", "--images", folders, "--format", "csv")
    results = rows(out)
    assert status == 1
    assert [row["image"] for row in results] == names
    assert [row["class"] for row in results] == ["dog", "cat", "", "", "", "cat"]
    assert results[2]["error"] == (
        f"{table}, line 4: the file name '../secret.jpg' does not stay inside {folders}. Names are relative to that "
        f"folder."
    )
    assert results[4]["error"] == f"{folders}/dog/gone.jpg: no such file."
    with pytest.raises(ConfigError, match="has no column 'file'; its columns are id, picture. Use --column NAME."):
        predict(table, "--column", "file")
    two = write_csv(tmp_path / "two.csv", [("before", "after"), ("a.jpg", "b.jpg")])
    with pytest.raises(ConfigError, match="two.csv has the columns before, after, and it is not clear which one"):
        predict(two)


def test_a_submission_has_the_columns_and_labels_of_the_competition(predict: Predict, tmp_path: Path) -> None:
    from headstart.train import run

    root = make_emergency(tmp_path / "data")
    arguments = ("data=emergency", f"data.root={root}", "data.val_fraction=0.2", "epochs=8", "lr=1e-2")
    run(composed(*SMALL, *RESNET18, *arguments), tmp_path / "run")
    names = [f"{index}.jpg" for index in (3, 0, 2, 1, 2)]
    table = write_csv(root / "test.csv", [("extra", "image_names"), *((9, name) for name in names)])
    out = tmp_path / "submission.csv"
    for model in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.ckpt"):
        assert predict(table, "--images", root / "images", "--out", out, model=model) == (0, "", "")
        written = rows(out.read_text())
        assert list(written[0]) == ["image_names", "emergency_or_not"]
        assert [row["image_names"] for row in written] == names
        assert [row["emergency_or_not"] for row in written] == ["1", "0", "0", "1", "0"]
    # With --top it is a table of predictions, as for any other source.
    predict(table, "--images", root / "images", "--out", out, "--top", 2, model=tmp_path / "run")
    assert "probability_2" in rows(out.read_text())[0]


@pytest.mark.parametrize("format", ["csv", "json", "jsonl", None])
def test_names_with_any_bytes_are_printed(format: str | None, trained: Path, folders: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9 \n \xe2\x9c\x93.jpg"
    Path(os.fsdecode(name)).write_bytes((folders / "cat" / "0.jpg").read_bytes())
    arguments = ["--format", format] if format else []
    command = [python(cold=format is None), "-c", "from headstart.cli.main import main; main()", "predict"]
    environment = {**os.environ, "HEADSTART_WARM_CODE": "1"}
    done = subprocess.run([*command, trained, tmp_path, *arguments], check=True, capture_output=True, env=environment)
    assert b"cat" in done.stdout
    if format in ("json", "jsonl"):
        item: Any = json.loads(done.stdout)
        assert os.fsencode((item[0] if format == "json" else item)["image"]) == name
    elif format == "csv":
        assert name in done.stdout
    else:
        assert len(done.stdout.splitlines()) == 2  # a name cannot break the table


def test_a_reader_that_has_seen_enough_ends_it_quietly(trained: Path, folders: Path) -> None:
    command = f"{python()} -c 'from headstart.cli.main import main; main()' predict {trained} {folders}/*/* | head -n 1"
    environment = {**os.environ, "HEADSTART_WARM_CODE": "1"}
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("image")
    assert done.stderr == ""


def test_out_needs_a_format(predict: Predict, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--out .*answers.txt: choose a format by its ending, csv, json, jsonl, or by"
    ):
        predict(folders, "--out", tmp_path / "answers.txt")
    with pytest.raises(ConfigError, match="is a folder: name the file to write."):
        predict(folders, "--format", "csv", "--out", tmp_path)
    with pytest.raises(HeadstartError, match="/proc/none: No such file or directory."):
        predict(folders, "--out", "/proc/none/x.csv")


@pytest.mark.parametrize("arguments", [("--top", "0"), ("--top", "abc"), ("--workers", "-1"), ("--batch-size", "0")])
def test_numbers_out_of_range_are_explained(arguments: tuple[str, str], predict: Predict, folders: Path) -> None:
    status, _, err = predict(folders, *arguments)
    assert status == 2
    assert "expected a whole number from" in err or "expected one argument" in err


def test_sources_may_stand_on_both_sides_of_an_option(predict: Predict, folders: Path) -> None:
    first, second = folders / "cat" / "0.jpg", folders / "dog" / "0.jpg"
    lines = predict(first, "--format", "jsonl", second)[1].splitlines()
    assert [json.loads(line)["image"] for line in lines] == [str(first), str(second)]
    assert predict(first, "--colour", "red")[0] == 2
