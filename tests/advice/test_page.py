"""The page of a comparison of backbones, its charts and advice.json."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from headstart.advice.charts import accuracy_by_speed, learning_curves
from headstart.advice.page import write_advice
from headstart.advice.result import Advice, Estimate
from headstart.advice.table import label, rows
from tests.helpers.advice import hand_made
from tests.helpers.runs import composed


def page_of(advice: Advice, folder: Path) -> str:
    return write_advice(advice, composed(), folder, ["advise.models=a,b"]).read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the page of `hand_made`."""
    folder = tmp_path_factory.mktemp("page")
    page_of(hand_made(), folder)
    return folder


def names_on(fig: Figure) -> dict[str, tuple[float, float, float, float]]:
    """The names on the chart, and the extent of each in pixels."""
    fig.draw_without_rendering()
    # The extent of the name alone, without the line to its point.
    return {text.get_text(): Text.get_window_extent(text).extents for text in fig.axes[0].texts}


def test_the_page_has_what_is_recommended_and_all_others_with_their_verdict(written: Path) -> None:
    advice, page = hand_made(), (written / "index.html").read_text()
    assert '<p class="headline">resnet50</p>' in page
    assert advice.reason in page
    assert f"<pre>{advice.command}</pre>" in page
    assert "vit_b_16 was measured on 800 images only" in page
    assert "Expected accuracy <b>95.7%</b>" in page  # at all images
    body = page[page.index('<h2 id="backbones">') : page.index('<h2 id="others">')]
    table = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in body.split("<tr>")[2:]]
    assert [re.search("recommended|may be best|clearly worse", row)[0] for row in table] == [  # type: ignore[index]
        *(3 * ["may be best"] + ["recommended"] + 6 * ["clearly worse"])
    ]
    assert table[3].startswith("resnet50 25.6 M parameters at 224 × 224 recommended 94.9% 93.1% – 96.3% 1,600 images")
    assert table[3].endswith("95.7% 93.5% – 97.5% 61 102.5 not stated")
    assert "4 of these cannot be told from the best one" in page
    assert ">SWAG</a>" in page
    assert "headstart advise advise.models=a,b" in page


def test_what_was_not_measured_says_why_and_names_are_no_markup(written: Path) -> None:
    page = (written / "index.html").read_text()
    assert "Did you mean &#39;vit_large_patch16_224&#39;?" in page
    assert "null or a &lt;file&gt;" in page
    assert "575 MB to download; advise.fetch=true fetches it" in page


def test_the_page_is_one_file(written: Path) -> None:
    page = (written / "index.html").read_text()
    assert {path.name for path in written.iterdir()} == {"index.html", "advice.json"}
    assert "<img" not in page
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert len(page) < 500_000


def test_advice_json_has_all_values(written: Path) -> None:
    values = json.loads((written / "advice.json").read_text())
    assert values["recommended"] == "resnet50"
    best = values["measured"][0]
    assert best["candidate"]["name"] == "timm/vit_base_patch16_siglip_224.webli"
    assert best["accuracy"] == {"value": 0.962, "low": 0.944, "high": 0.962 + 0.8 * 0.018}
    assert best["curve"][-1][0] == values["images"] == 2400
    assert values["others"][-1]["problem"].startswith("not on this machine")


def test_a_single_backbone_without_a_curve_has_a_page(tmp_path: Path) -> None:
    advice = hand_made()
    only = replace(advice.recommended, curve=[(1600, advice.recommended.accuracy)])
    page = page_of(replace(advice, measured=[only], recommended=only, others=[], notes=[]), tmp_path)
    assert page.count("<svg") == 1
    assert "Expected accuracy <b>94.9%</b>" in page
    assert "in the sample of 1,600 images" in page
    assert "Not measured" not in page
    assert "All others are worse" not in page


# --- charts --------------------------------------------------------------------------------------------------


def test_every_point_has_its_name_and_no_two_overlap() -> None:
    advice = hand_made()
    names = names_on(accuracy_by_speed(advice))
    low = "glyphnet: 41%"  # far below all others, at the lower edge
    expected = {label(measured.candidate.name) for measured in advice.measured} - {"glyphnet"} | {low}
    assert names.keys() == expected
    for (_, a), (_, b) in combinations(names.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_names_without_room_are_left_out_and_the_recommended_one_stays() -> None:
    advice = hand_made()
    crowd = [
        replace(advice.measured[number % 4], candidate=replace(advice.measured[0].candidate, name=f"network_{number}"))
        for number in range(40)
    ]
    names = names_on(accuracy_by_speed(replace(advice, measured=crowd, recommended=crowd[30])))
    assert "network_30" in names
    assert len(names) < 40
    for (_, a), (_, b) in combinations(names.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_what_is_extrapolated_is_dashed_and_hollow() -> None:
    lines = learning_curves(hand_made()).axes[0].lines
    for line in lines:
        counts = [round(float(count), -2) for count in line.get_xdata()]  # type: ignore[union-attr, arg-type]
        solid = line.get_linestyle() == "-"
        assert (max(counts) <= 1700) == solid, counts
        if line.get_linestyle() == "None":
            assert line.get_markerfacecolor() == "none"
    assert len(lines) == 3 * 10
    shown = [line.get_label() for line in lines if not str(line.get_label()).startswith("_")]
    assert shown == ["resnet50", "vit_base_patch16_…24.webli", "convnext_tiny", "vit_b_16"]


def test_an_accuracy_without_doubt_is_drawn() -> None:
    sure = Estimate(1.0, 1.0, 1.0)
    only = replace(hand_made().recommended, accuracy=sure, curve=[(10, sure), (20, sure)])
    advice = replace(hand_made(), measured=[only], recommended=only)
    assert accuracy_by_speed(advice).axes[0].get_ylim()[1] >= 1
    assert learning_curves(advice).axes[0].get_ylim()[1] > 1


# --- the table -----------------------------------------------------------------------------------------------


def test_rows_of_the_table() -> None:
    header, *others = rows(hand_made())
    assert header == ["backbone", "licence", "accuracy %", "at all 2,400", "images/s", "MB", ""]
    assert others[3] == [
        *("resnet50", "not stated", "94.9 (93.1–96.3)", "95.7 (93.5–97.5)", "61", "102", "recommended")
    ]
    assert [row[-1] for row in others] == [*3 * ["may be best"], "recommended", *6 * ["clearly worse"]]
    slow = replace(hand_made().measured[0].candidate, images_per_second=0.42)
    short_curve = replace(hand_made().measured[0], candidate=slow, curve=[])
    advice = replace(hand_made(), measured=[short_curve])
    assert rows(advice)[1][3:5] == ["", "0.42"]


def test_labels_are_short() -> None:
    assert label("timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert label("torchvision/densenet121") == "densenet121"
    assert label("mobilenet_v2@../weights/mine.pth") == "mobilenet_v2@mine.pth"
    assert label("mobilenet_v2@null") == "mobilenet_v2@null"
