"""Heat maps: in the right place, of every kind of network, and as pictures."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from headstart.inference.explain.heatmap_files import draw, file_name
from headstart.inference.explain.heatmaps import Explainer, Heatmap, explain, overlay
from headstart.inference.model import Model
from headstart.models.backbone import build_backbone
from headstart.models.head import build_head
from headstart.models.model_folder import Artifact
from headstart.utils.errors import ConfigError, DataError, ModelError
from tests.helpers.images import class_folders, make_odd_images, photo, write_csv
from tests.inference.conftest import Predict

CLASSES = ("here", "there", "nowhere")
# Library, network, and a size that it takes, the smallest at which something is left to see.
NETWORKS = (
    ("headstart", "glyphnet", 32),
    ("headstart", "simple_cnn", 224),
    ("torchvision", "resnet18", 64),
    ("torchvision", "vgg11", 64),
    ("torchvision", "mobilenet_v2", 64),
    ("torchvision", "squeezenet1_1", 64),
    ("torchvision", "convnext_tiny", 64),
    ("torchvision", "efficientnet_b0", 64),
    ("torchvision", "densenet121", 64),  # a ReLU changes its last map in place
    ("torchvision", "vit_b_32", 224),  # its own size
    ("timm", "deit_tiny_distilled_patch16_224", 224),  # two tokens in front of the patches'
    ("timm", "swin_tiny_patch4_window7_224", 224),  # channels last
    ("timm", "convnext_atto", 64),
)


def random_model(
    library: str, name: str, size: int, change: Callable[[nn.Module, nn.Linear], None] | None = None
) -> Model:
    """A model of three classes with random weights, or those that `change` gives backbone and head."""
    torch.manual_seed(0)
    backbone = build_backbone(library, name, None)
    head = build_head("linear", backbone.num_features, len(CLASSES))
    if change:
        with torch.no_grad():
            change(backbone.module, head)
    description = {
        "model": backbone.description,
        "head": {"name": "linear"},
        "class_names": list(CLASSES),
        "preprocessing": asdict(backbone.preprocessing.with_overrides(image_size=size)),
    }
    parts = {"backbone": backbone.module, "head": head}
    state = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return Model(Artifact(Path("somewhere"), description, state), "cpu")


def noise(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def two_lights(side: int) -> Image.Image:
    """Black, with a white square in the upper right corner and another in the lower left one."""
    pixels = np.zeros((side, side, 3), np.uint8)
    quarter = side // 4
    pixels[:quarter, -quarter:] = pixels[-quarter:, :quarter] = 255
    return Image.fromarray(pixels)


def heat_by_quarter(heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """How much of the heat is in each quarter, as [[upper left, upper right], [lower left, lower right]]."""
    half = len(heat) // 2
    quarters = heat.reshape(2, half, 2, half).sum(axis=(1, 3), dtype=np.float64)
    return quarters / quarters.sum()


def opposites(_: nn.Module, head: nn.Linear) -> None:
    """What speaks against the first class speaks for the second."""
    head.weight[1] = -head.weight[0]


# --- every kind of network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "name", "size"), NETWORKS, ids=[name for _, name, _ in NETWORKS])
def test_every_kind_of_network_is_explained_and_stays_as_it_is(library: str, name: str, size: int) -> None:
    model = random_model(library, name, size, opposites)
    network = model.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():  # where its callers are
        heatmaps = explain(model, [noise()] * len(CLASSES), CLASSES)
        assert torch.is_inference_mode_enabled()
    assert [heatmap.class_name for heatmap in heatmaps] == list(CLASSES)
    for heatmap in heatmaps:
        assert heatmap.heat.dtype == np.float32
        assert heatmap.heat.shape == (size, size)
        assert heatmap.crop.size == (size, size)
        assert heatmap.heat.min() >= 0
        assert heatmap.heat.max() in (0, 1)
    assert max(heatmap.heat.max() for heatmap in heatmaps[:2]) == 1
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    for module in network.modules():
        assert not {**module._forward_hooks, **module._forward_pre_hooks, **module._backward_hooks}
        assert not module.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def test_a_network_that_runs_out_of_pixels_says_so() -> None:
    model = random_model("headstart", "glyphnet", 1)
    message = r"somewhere: there are no heat maps of glyphnet for images of 1 × 1 pixels: .* larger data.image_size"
    with pytest.raises(ModelError, match=message):
        explain(model, [noise()])
    assert not any(module._forward_hooks for module in model.network.modules())


def test_what_a_pool_has_enlarged_is_not_taken_for_a_map() -> None:
    """A VGG makes 1 × 1 of 32 pixels, and its pool makes 7 × 7 of that."""
    explainer = Explainer(random_model("torchvision", "vgg11", 32))
    assert isinstance(explainer.target_layer.module, nn.ReLU)


# --- in the right place --------------------------------------------------------------------------------------


def sees_corners(backbone: Any, head: nn.Linear) -> None:
    """Brightness in the upper right corner is "here", in the lower left "there"; "nowhere" is nothing."""
    for block in (backbone.block1, backbone.block2):
        block[0].weight.zero_()
        block[0].bias.zero_()
        block[0].weight[0, 0, 1, 1] = 1
    head.weight.zero_()
    head.bias.zero_()
    places = head.weight.view(len(CLASSES), 8, 56, 56)
    places[0, 0, :28, 28:] = places[1, 0, 28:, :28] = 1


def test_a_convolutional_network_that_heeds_one_corner_shows_it() -> None:
    here, there, nowhere = explain(
        random_model("headstart", "simple_cnn", 224, sees_corners), [two_lights(224)] * 3, CLASSES
    )
    np.testing.assert_allclose(heat_by_quarter(here.heat), [[0, 1], [0, 0]], atol=0.01)
    np.testing.assert_allclose(heat_by_quarter(there.heat), [[0, 0], [1, 0]], atol=0.01)
    assert here.heat[10, -10] == 1
    assert here.heat[70:].max() < 0.01
    assert not nowhere.heat.any()


def looks_up_right(backbone: Any, head: nn.Linear) -> None:
    """The class token attends to the patches of the upper right quarter and learns how bright they are.

    Of a token's numbers the first is brightness, the second a constant and the third whether to look there.
    """
    for block in backbone.blocks:
        for layer in (block.attn.proj, block.mlp.fc2, block.attn.qkv):
            layer.weight.zero_()
            layer.bias.zero_()
    for values in (
        backbone.patch_embed.proj.weight,
        backbone.patch_embed.proj.bias,
        backbone.pos_embed,
        backbone.cls_token,
    ):
        values.zero_()
    backbone.patch_embed.proj.weight[0] = 1 / 16**2
    backbone.pos_embed[..., 1] = 4
    backbone.pos_embed[:, 1:].view(14, 14, -1)[:7, 7:, 2] = 4
    width = head.in_features
    last = backbone.blocks[-1].attn
    last.qkv.bias[0] = 8  # the query of the first head, of all tokens
    last.qkv.weight[width, 2] = 8  # the key
    last.qkv.weight[2 * width, 0] = 1  # the value
    last.proj.weight[0, 0] = 1
    head.weight.zero_()
    head.bias.zero_()
    head.weight[:2, 0] = torch.tensor([1.0, -1.0])


def test_a_vision_transformer_that_heeds_one_corner_shows_it() -> None:
    model = random_model("timm", "vit_tiny_patch16_224", 224, looks_up_right)
    explainer = Explainer(model)
    assert explainer.target_layer.module is model.network.get_submodule("backbone.blocks.11.norm1")
    (heatmap,) = explainer.explain([two_lights(224)], "here")
    assert heat_by_quarter(heatmap.heat)[0, 1] > 0.95
    row, column = np.unravel_index(heatmap.heat.argmax(), heatmap.heat.shape)
    assert row < 224 // 4
    assert column >= 224 * 3 // 4


class Brightness(nn.Module):
    """Two maps of 8 × 8 places, of light and of darkness, in one of the forms that networks give them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.colours = nn.Conv2d(3, 2, kernel_size=1)
        self.colours.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 3)[..., None, None])
        self.colours.bias.zero_()
        self.activation = nn.SiLU()  # called twice: its outputs are two
        self.end = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.activation(nn.functional.adaptive_avg_pool2d(self.colours(images), 8))
        match self.form:
            case "channels last":
                values = self.end(values.movedim(1, -1)).movedim(-1, 1)
            case "tokens" | "class token":
                tokens = values.flatten(2).transpose(1, 2)
                extra = int(self.form == "class token")
                tokens = self.end(torch.cat([torch.ones(len(images), extra, 2), tokens], dim=1))
                values = tokens[:, extra:].transpose(1, 2).unflatten(2, (8, 8))
            case "changed" | "changed in place":
                values = nn.functional.silu(self.end(values), inplace=self.form == "changed in place")
            case "a layer twice":
                values = self.activation(values)
        return values.mean(dim=(2, 3))


def small_model(build: Callable[[], nn.Module]) -> Model:
    """A model with a backbone of light and darkness: for "here" where it is light, for "there" where it is dark."""
    model = random_model("headstart", "glyphnet", 32)
    with torch.no_grad():
        head = nn.Linear(2, 3)
        head.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]))
        model.network = nn.Sequential(OrderedDict(backbone=build(), head=head)).eval().requires_grad_(False)
    return model


def light_and_dark() -> Image.Image:
    pixels = np.full((32, 32, 3), 64, np.uint8)
    pixels[4:8, 20:32], pixels[24:28, 4:8] = 255, 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", ["channels last", "tokens", "class token", "changed in place", "a layer twice"])
def test_every_form_of_a_map_is_seen_the_right_way_round(form: str) -> None:
    light, dark = explain(small_model(partial(Brightness, form)), [light_and_dark()] * 2, ("here", "there"))
    expected = np.zeros((8, 8), bool)
    expected[1, 5:] = True
    np.testing.assert_array_equal(light.heat[2::4, 2::4] > 0.9, expected)
    assert np.unravel_index(dark.heat[2::4, 2::4].argmax(), (8, 8)) == (6, 1)


def test_a_map_that_is_changed_later_is_taken_as_it_was() -> None:
    heat = [
        explain(small_model(partial(Brightness, form)), [noise()], "here")[0].heat
        for form in ("changed", "changed in place")
    ]
    np.testing.assert_array_equal(*heat)


def test_a_layer_that_runs_twice_is_no_target_layer() -> None:
    explainer = Explainer(small_model(partial(Brightness, "a layer twice")))
    assert isinstance(explainer.target_layer.module, nn.Conv2d)


# --- what is asked for ---------------------------------------------------------------------------------------


def test_by_default_the_predicted_class(model: Model, folders: Path) -> None:
    files = [folders / name / f"{index}.jpg" for index in range(5) for name in ("dog", "cat")]  # more than a batch
    explainer = Explainer(model)
    crops = [explainer.crop(file) for file in files]
    heatmaps = explainer.explain(crops)
    assert [heatmap.class_name for heatmap in heatmaps] == ["dog", "cat"] * 5
    for crop, heatmap, named in zip(crops, heatmaps, explainer.explain(crops, ["dog", "cat"] * 5), strict=True):
        np.testing.assert_array_equal(heatmap.heat, named.heat)
        np.testing.assert_allclose(heatmap.heat, explainer.explain([crop])[0].heat, atol=1e-4)
    assert {heatmap.class_name for heatmap in explainer.explain(crops, "cat")} == {"cat"}
    assert explain(model, []) == []


def test_the_crop_is_what_the_network_sees(model: Model, folders: Path) -> None:
    file = folders / "cat" / "0.jpg"
    seen = model.transform(Image.open(file))
    mean, std = (torch.tensor(getattr(model.preprocessing, name)).view(3, 1, 1) for name in ("mean", "std"))
    crop = torch.from_numpy(np.array(explain(model, file)[0].crop)).movedim(-1, 0)
    torch.testing.assert_close((crop / 255 - mean) / std, seen)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dgo", r"/run/model has no class 'dgo'. Did you mean 'dog'\?"),
        (["cat", "zebra"], r"/run/model has no class 'zebra'. Its classes are cat, dog."),
        (["cat"], "1 classes for 2 images: expected one for each, or one name for all."),
    ],
)
def test_classes_that_cannot_be_meant_are_explained(names: Any, message: str, model: Model) -> None:
    with pytest.raises(ConfigError, match=message):
        explain(model, [noise(), noise()], names)


def test_without_the_library_it_says_what_to_install(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ConfigError, match=r"explanations need the package grad-cam, .*: pip install grad-cam"):
        explain(model, [noise()])


def test_an_answer_that_is_no_number_is_not_explained() -> None:
    model = random_model("headstart", "glyphnet", 32, lambda _, head: head.weight.fill_(torch.nan))  # type: ignore[arg-type, return-value]
    with pytest.raises(DataError, match="somewhere: its logits are not finite. Training diverged"):
        explain(model, [noise()], "here")


def test_what_cannot_be_read_is_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.jpg: no such file."):
        explain(model, tmp_path / "gone.jpg")


def test_the_photograph_shows_through_the_heat() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    heat = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None], 64, axis=0)
    before = heat.copy()
    blended = np.asarray(overlay(Image.fromarray(stripes), heat)).astype(int)
    np.testing.assert_array_equal(heat, before)
    assert blended.shape == (64, 64, 3)
    assert (blended[0] - blended[1]).min() > 80  # light and dark stay apart, hot and cold
    assert blended[:, -1, 0].mean() > blended[:, -1, 2].mean() + 50  # hot is yellow
    assert np.ptp(blended[:, 0].mean(axis=0)) < 5  # cold has no colour


# --- headstart predict --explain -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", [(), ("--format", "json", "--tta", "flip")])
def test_every_prediction_has_a_heat_map_and_none_changes(
    format: tuple[str, ...], predict: Predict, folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    odd = make_odd_images(tmp_path / "odd")
    sources = (folders / "cat", tmp_path / "text.jpg", *odd.values(), tmp_path / "gone.jpg", *format)
    expected = predict(*sources)
    out = tmp_path / "deep" / "heatmaps"
    assert predict(*sources, "--explain", out) == expected
    assert expected[0] == 1
    predicted = [*(folders / "cat").iterdir(), *odd.values()]
    assert {file.name for file in out.iterdir()} == {file_name(str(file)) for file in predicted}
    for file in out.iterdir():
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (2 * 224 + 6, 224 + 28))


def test_what_the_picture_shows(predict: Predict, model: Model, folders: Path, tmp_path: Path) -> None:
    file = folders / "cat" / "0.jpg"
    predict(file, "--explain", tmp_path)
    (written,) = tmp_path.iterdir()
    prediction, (heatmap,) = model.predict(file), explain(model, file, "cat")
    pixels = np.asarray(Image.open(written)).astype(int)
    expected = np.asarray(draw(heatmap, prediction.probability)).astype(int)
    assert np.abs(pixels - expected).mean() < 5
    crop = np.asarray(heatmap.crop.resize((224, 224), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(pixels[28:, :224] - crop).mean() < 5
    assert (pixels[:28] < 100).any()  # something is written above


def test_pictures_of_images_with_the_same_name_do_not_collide(predict: Predict, tmp_path: Path) -> None:
    class_folders(tmp_path / "a" / "x", ("cat", "dog"), 1)
    class_folders(tmp_path / "b" / "x", ("cat", "dog"), 1)
    for name in ("0.png", "0.jpeg", "0 .jpg"):
        photo(tmp_path / "a" / "x" / "cat" / name, 0)
    images = sorted(file for folder in "ab" for file in (tmp_path / folder).rglob("0*"))
    assert predict(tmp_path / "a", tmp_path / "b", "--explain", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == len(images) == 7
    assert all(file.name.startswith(("cat_0-", "dog_0-")) for file in (tmp_path / "out").iterdir())
    # The same again is the same files.
    assert predict(tmp_path / "a", tmp_path / "a", "--explain", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_odd_names_stay_in_the_folder(
    predict: Predict, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (folders / "cat" / "0.jpg").read_bytes()
    inside = tmp_path / "in" / ("long " * 50)
    inside.mkdir(parents=True)
    names = [
        "..jpg",
        "-- x.jpg",
        "größe 図.jpg",
        os.fsdecode(b"caf\xe9 \n.jpg"),
        "n" * 251 + ".jpg",
        "...x.jpg",
        "💡.jpg",
    ]
    for name in names:
        (inside / name).write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(inside)
    listed = write_csv(inside / "list.csv", [("image",), ("./größe 図.jpg",)])
    sources = [f"../{inside.name}/{names[0]}", f"{inside}/../{inside.name}//{names[1]}", *names[2:], listed]
    status, *_, err = predict("--explain", "../../out", "--", *sources)
    assert (err, status) == ("", 0)
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == len(names)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, inside / "list.csv", tmp_path / "out", *written])
    assert any("größe_図" in file.name for file in written)


@given(st.text(), st.text())
def test_a_name_is_one_for_every_system(folder: str, name: str) -> None:
    file = file_name(f"{folder}/{name}")
    assert file.endswith(".jpg")
    assert not set(file) & set('/\\:*?"<>|\0 \n')
    assert not file.startswith(".")
    assert len(file.encode()) <= 140


def test_what_cannot_be_read_twice_is_answered_without_a_draw(predict: Predict, folders: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, (folders / "cat" / "0.jpg").read_bytes())
    os.close(writer)
    pipe = f"/dev/fd/{reader}"
    status, out, err = predict(pipe, folders / "dog" / "0.jpg", "--format", "csv", "--explain", tmp_path)
    os.close(reader)
    assert status == 0
    assert [line.split(",")[1] for line in out.splitlines()] == ["class", "cat", "dog"]
    assert err == f"headstart: no heat map: {pipe}: no file that can be read again.\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_place_of_the_folder_is_refused(predict: Predict, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--explain .*/file is a file: name a folder for the heat maps."):
        predict(folders, "--explain", tmp_path / "file")


@pytest.mark.parametrize("name", ["x" * 300, "日本", "a\nb", "caf\udce9", ""])
def test_any_class_name_can_be_written(name: str) -> None:
    crop = Image.new("RGB", (300, 300))
    image = draw(Heatmap(name, np.zeros((300, 300), np.float32), crop), 0.5)
    title = np.asarray(image.convert("L"))[:28]
    assert image.size == (606, 328)
    assert (title < 100).any()
    assert (title[:, -6:] == 255).all()  # it ends before the edge
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    assert draw(Heatmap(printable, np.zeros((300, 300), np.float32), crop), 0.5) == image
