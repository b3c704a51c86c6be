# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own photos
#
# From a folder of photos to a model that sorts new ones: look at the data, train, predict, see what it is unsure of and
# why.
#
# Name your own folder here. Without one, the notebook draws some pictures that will do: nothing is downloaded.

# %% tags=["parameters"]
PHOTOS = None  # a folder with a folder of images for each class in it; None: some are drawn below
NEW = None  # a folder of images to sort; None: the run's own test images, or drawn ones
MODEL = ["model=glyphnet", "freeze=false", "data.image_size=48"]  # for real photos: ["model=resnet34"]
RUNS = None  # where everything goes; None: a new folder below outputs/

# %%
import os
import shlex
from datetime import datetime
from pathlib import Path

import matplotlib
import numpy as np
from IPython.display import Image, display
from PIL import Image as Picture
from PIL import ImageDraw, ImageFilter, ImageFont

# Folders are named from where train.py is, as in the README.
os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()))
RUNS = Path(RUNS or f"outputs/notebooks/{datetime.now():%Y-%m-%d_%H-%M-%S}")

# %% [markdown]
# ## A folder for each class
#
# That is all that headstart wants to know: the names of the folders are the classes. There may be `train`, `val` and
# `test` above them; if not, parts of the images are put aside for validation and test.
#
# These are our stand-ins for photographs: symbols in random colours, sizes and places. (Fonts have more symbols than
# you would think.)

# %%
SYMBOLS = {"anchor": "⚓", "cloud": "☁", "heart": "♥", "plane": "✈"}
SYMBOLS |= {"scissors": "✂", "snowman": "☃", "telephone": "☎", "umbrella": "☂"}
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
SIDE = 128  # pixels


def photo(symbol, rng):
    """A picture of a symbol before a blurred background."""
    colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    blurred = Picture.fromarray(colours).resize((SIDE, SIDE), Picture.Resampling.BICUBIC)
    noisy = 0.6 * np.asarray(blurred) + rng.normal(0, 12, (SIDE, SIDE, 3))
    picture = Picture.fromarray(noisy.clip(0, 255).astype(np.uint8))

    ink = Picture.new("L", picture.size)
    font = ImageFont.truetype(str(FONT), int(SIDE * rng.uniform(0.45, 0.9)))
    x, y = SIDE * rng.uniform(0.4, 0.6, 2)
    ImageDraw.Draw(ink).text((x, y), symbol, fill=255, font=font, anchor="mm")
    ink = ink.rotate(rng.normal(0, 15), Picture.Resampling.BILINEAR)
    ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    picture.paste(tuple(rng.integers(140, 256, 3).tolist()), mask=ink)
    return picture


if PHOTOS is None:
    PHOTOS, NEW = RUNS / "photos", RUNS / "new"
    rng = np.random.default_rng(0)
    for name, symbol in SYMBOLS.items():
        (PHOTOS / name).mkdir(parents=True)
        for number in range(30):
            photo(symbol, rng).save(PHOTOS / name / f"{number:02}.jpg")
    NEW.mkdir()
    for name, symbol in (SYMBOLS | {"star": "★", "coffee": "☕"}).items():  # the last two are in no folder
        photo(symbol, rng).save(NEW / f"{name}.jpg")

for folder in sorted(path for path in Path(PHOTOS).iterdir() if path.is_dir()):
    print(f"{folder.name}: {sum(path.is_file() for path in folder.rglob('*'))} files")

# %% [markdown]
# ## Look first
#
# Most disappointments can be seen before training: a class with hardly an image, labels that are wrong, pictures on
# their side, an augmentation that makes things look like nothing that you would ever meet.
#
# The words are those of the command line; in a terminal you would write the commands that are printed here. `look`
# writes a web page and its pictures.

# %%
from headstart.config.compose import evaluation_config
from headstart.report.data_preview import look

words = ["data=imagefolder", f"data.root={PHOTOS}", "augment=standard", *MODEL]
print("headstart look ", shlex.join(words))
print("python train.py", shlex.join(words))
page = look(evaluation_config(None, words), RUNS / "look", words)
print(f"look: {page}")
display(Image(page.parent / "counts.png"))
display(Image(page.parent / "samples.png"))

# %% [markdown]
# `augment=standard` shows the network a random part of each training image, mirrored one time in two. On the left is
# the image without it, in the size that the network sees. A mirrored heart is a heart, but think twice if your classes
# are letters, or arrows to the left and to the right: then `augment=none` is better.

# %%
display(Image(page.parent / "augmented.png"))

# %% [markdown]
# ## Train
#
# The small backbone of this notebook has only seen letters and digits. What it knows of strokes and corners is a good
# start, but hearts and planes are new to it: so all of it is trained further, `freeze=false`. A backbone that was
# pretrained on photographs, such as `model=resnet34` (its weights are fetched once), knows enough of them to stay
# frozen, which is faster and the default.

# %%
from headstart.train import run as train

RUN = RUNS / "run"
config = evaluation_config(None, [*words, "report=false", "trainer.enable_progress_bar=false"])
train(config, RUN)

# %%
from headstart.report import charts
from headstart.report.statistics import wilson
from headstart.report.style import png
from headstart.runs.finished import read_finished


def show(figure):
    """Displays a figure here as it looks in a report."""
    display(Image(png(figure)))


run = read_finished(RUN)
matrix = run.evaluation.confusion
correct, images = int(matrix.trace()), int(matrix.sum())
low, high = wilson(correct, images)
print(f"{correct} of {images} {run.evaluation.split} images are right; 95 % interval: {low:.0%} to {high:.0%}")
show(charts.curve(run.curves, "accuracy", best=run.best_epoch, stopped=run.stopped_early))
show(charts.confusion(matrix, run.class_names))

# %% [markdown]
# So few test images leave a wide interval. `02_look_inside_a_run.py` looks closer.
#
# ## Sort new photos
#
# `headstart.load` gives the trained model, and `predict` takes one image or many: paths, PIL images, arrays. The run
# folder, or only `model/` in it, can be copied to another machine. In a terminal: `headstart predict RUN NEW`.

# %%
import headstart
from headstart.data.image_folder import walk_images

model = headstart.load(RUN)
paths = walk_images(Path(NEW)).files if NEW else run.evaluation.images
answers = list(zip(paths, model.predict(paths), strict=True))
for path, answer in answers[:12]:
    print(f"{Path(path).name:16} {answer.class_name:12} {answer.probability:6.1%}")

# %% [markdown]
# ## What is it unsure of?
#
# The least sure answers first. These are the photos to look at yourself, and the first to label when you collect more.
#
# Of the drawn pictures, the star and the cup of coffee belong to no class. A classifier does not say "none of these":
# it shares out all its probability among the classes that it knows, and can even be sure of what it says. If such
# photos may come, give them a class of their own, `other`, with many different images.

# %%
from headstart.data.image_io import read_image
from headstart.report import image_grids

unsure = sorted(answers, key=lambda pair: pair[1].probability)[:8]
tiles = [image_grids.Tile(read_image(path), (Path(path).name,), top=answer.top) for path, answer in unsure]
show(image_grids.grid(tiles, columns=4, bars=True))

# %% [markdown]
# ## Why does it say so?
#
# A heat map, made from the gradients of an answer, shows which parts of an image speak for it: bright is where the
# network found what it names. If that is the background, or a date in the corner, it has learned the wrong thing. This
# small network draws its conclusions from a map of six by six places, so the heat is coarse; larger networks see finer.

# %%
from headstart.inference.explain.heatmaps import explain, overlay

heatmaps = explain(model, [path for path, _ in unsure])
tiles = [
    image_grids.Tile(found.crop, (Path(path).name, f"why {found.class_name}?"), overlay=overlay(found.crop, found.heat))
    for (path, _), found in zip(unsure, heatmaps, strict=True)
]
show(image_grids.grid(tiles))

# %% [markdown]
# ## Take it away
#
# - `headstart export RUN --to onnx` writes the model for ONNX Runtime, which runs in browsers, phones and C++ programs;
#   it needs `pip install -e ".[onnx]"`.
# - `headstart predict RUN NEW --format csv > answers.csv` makes a table.
# - `headstart evaluate RUN FOLDER` says how good the model is on other labelled photos.
# - More photos of the classes that it confuses help most. Then comes a larger backbone: `model=resnet34`,
#   `model=mobilenet_v2`, or any of timm's.
