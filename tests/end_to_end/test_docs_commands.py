"""Every command of the README and the docs, typed as it stands in a folder that has what it names.

`python` and `headstart` are warm there; tests/end_to_end/test_train.py starts them cold. Commands that would take many
minutes without a GPU get smaller images and fewer epochs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs.generate.pages import DOCS

from tests.helpers.commands import HELPERS, joined_path
from tests.helpers.images import (
    class_folders,
    make_caltech101,
    make_emergency,
    make_pets,
    make_split_folders,
    make_stl10,
    photo,
    write_csv,
)
from tests.helpers.runs import ROOT

pytestmark = pytest.mark.soak
PROGRAMS = ("python train.py", "headstart ")
HEADSTART = """env HEADSTART_WARM_CODE=1 "$HEADSTART_WARM_PYTHON" -c 'from headstart.cli.main import main; main()'"""
# What a command needs that no test machine has.
ELSEWHERE = ("trainer=gpu", "submitit_slurm", "address=auto")
# Words of commands that take long, and overrides that make them shorter.
SHORTER = {
    "sweep=backbones": "",
    **dict.fromkeys(
        ("vgg16", "resnet", "densenet121", "efficientnet_b0"), " data.image_size=64 data.resize=64 epochs=4"
    ),
    "pretrain_glyphs": " data.per_class=20 epochs=1",
}
WEIGHTS = {
    *("convnext_tiny", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet34"),
    *("resnet50", "vgg16", "vgg16_bn", "vit_b_16"),
}
CODE = re.compile(r"^(?:    |\| `)?((?:python train\.py|headstart [a-z]+)(?: .*)?)$")


def commands() -> Iterator[str]:
    """Every command once, in the order of the pages."""
    seen = set()
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        inside = False
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            inside ^= line.startswith("```")
            if match := CODE.match(line):
                typed = match[1].partition("`")[0].partition("  #")[0].strip()
                if (inside or line.startswith(("    ", "| `"))) and "..." not in typed and typed not in seen:
                    seen.add(typed)
                    yield typed


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the control panel, small data sets where commands look for them, and finished runs."""
    root = tmp_path_factory.mktemp("typed")
    for name, warm in (("python", '"$HEADSTART_WARM_PYTHON"'), ("headstart", HEADSTART)):
        program = root / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {warm} "$@"\n')
        program.chmod(0o755)
    for name in ("train.py", "conf"):
        (root / name).symlink_to(ROOT / name)
    make_stl10(root / "data", train=120)  # twelve of them for validation: ten classes
    make_pets(root / "data")
    make_caltech101(root / "data")
    make_emergency(root / "emergency")
    make_split_folders(root / "cats_dogs")
    class_folders(root / "photos", images=20)
    class_folders(root / "holiday" / "2026", ("sea",))
    photo(root / "photo.jpg", 0)
    for index in range(20):
        photo(root / "scans" / ("cat", "dog")[index % 2] / f"scan{index // 2}_{index}.png", index % 2)
    rows = [(f"{name}/{index}.jpg", name, f"{name}{index // 4}") for name in ("cat", "dog") for index in range(20)]
    class_folders(root / "table" / "images", images=20)
    write_csv(root / "table" / "train.csv", [("file", "label", "patient"), *rows])
    write_csv(root / "test.csv", [("file",), *(row[:1] for row in rows)])
    few = "trainer=cpu epochs=2"
    run(root, f"python train.py data=imagefolder data.root=photos {few} hydra.run.dir=RUN")
    run(root, f"python train.py data=imagefolder data.root=photos {few} hydra.run.dir=outputs/DATE/TIME")
    run(root, f"python train.py data=pets {few} hydra.run.dir=pets")
    run(root, f"python train.py -m lr=1e-3,1e-2 {few} sweep.name=NAME")
    resnet = f"data=imagefolder data.root=photos model=resnet34 model.weights=null {few} hydra.run.dir=resnet"
    run(root, f"python train.py {resnet}")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights under the names of those that are downloaded, where torch.hub and timm look for them."""
    import timm
    import torch
    from safetensors.torch import save_file
    from torchvision import models

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    checkpoints = root / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in sorted(WEIGHTS):
        file = Path(models.get_model_weights(name).DEFAULT.url).name
        torch.save(models.get_model(name, weights=None).state_dict(), checkpoints / file)
    snapshots = root / "hub" / "models--timm--resnet18.a1_in1k"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text("0")
    (snapshots / "snapshots" / "0").mkdir(parents=True)
    network: Any = timm.create_model("resnet18.a1_in1k")
    save_file(network.state_dict(), snapshots / "snapshots" / "0" / "model.safetensors")
    return {"TORCH_HOME": str(root / "torch"), "HF_HUB_CACHE": str(root / "hub"), "HF_HUB_OFFLINE": "1"}


def run(folder: Path, typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Types a command in a folder."""
    # Cold for timm: huggingface_hub reads its environment when it is imported.
    warm = [] if "model=timm" in typed else [str(folder / "bin")]
    path = os.pathsep.join([*warm, str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "HEADSTART_CACHE": str(folder / "cache"), **environment}
    settings["PYTHONPATH"] = joined_path(HELPERS / "site", os.environ)
    done = subprocess.run(
        ["bash", "-c", typed], cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{typed}\n{done.stdout}\n{done.stderr}"
    return done


def with_names(typed: str) -> str:
    """Puts what a reader has in the place of FOLDER and MODEL."""
    kinds = {"data=csv": "table", "emergency": "emergency", "data=pets": "data", "cats_dogs": "cats_dogs"}
    kinds["group_pattern"] = "scans"
    folder = next((name for word, name in kinds.items() if word in typed), "photos")
    if "--images" in typed:
        folder = "table/images"
    model = "pets" if "data=pets" in typed else "RUN"
    if "model.weights=RUN" in typed:
        typed = typed.replace("RUN", "resnet")
    return typed.replace("FOLDER", folder).replace("MODEL", model)


@pytest.mark.parametrize("typed", list(commands()))
def test_a_command_of_the_docs_works_as_it_stands(typed: str, workplace: Path, weights: dict[str, str]) -> None:
    if any(word in typed for word in ELSEWHERE):
        pytest.skip("this machine has no GPU and no cluster")
    more = next((more for word, more in SHORTER.items() if word in typed and typed.startswith("python")), "")
    more += " advise.minutes=0.2" if typed.startswith("headstart advise") else ""
    cpus = " trainer.accelerator=cpu" if "trainer=ddp" in typed else ""
    done = run(workplace, with_names(typed) + more + cpus, **weights)
    assert "Traceback" not in done.stderr


def test_commands_are_found() -> None:
    found = list(commands())
    assert len(found) > 60
    assert all(typed.startswith(PROGRAMS) for typed in found)
