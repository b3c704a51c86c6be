"""A comparison of backbones as `headstart advise` ends with, made by hand."""

from __future__ import annotations

from headstart.advice.result import Advice, Candidate, Estimate, Measured

# Name, accuracy, images a second, megabytes, licence; the first four cannot be told from the best.
FIGURES = [
    ("timm/vit_base_patch16_siglip_224.webli", 0.962, 21.0, 371.5, "apache-2.0"),
    ("convnext_tiny", 0.958, 42.0, 114.4, None),
    ("vit_b_16", 0.953, 24.0, 346.3, "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"),
    ("resnet50", 0.949, 61.0, 102.5, None),
    ("efficientnet_b0", 0.931, 131.0, 21.4, None),
    ("timm/vit_small_patch16_224.augreg_in21k", 0.929, 58.0, 120.2, "apache-2.0"),
    ("resnet18", 0.914, 149.0, 46.8, None),
    ("mobilenet_v2@../weights/mobilenet_v2-torchvision.pth", 0.911, 171.0, 14.3, None),
    ("mobilenet_v3_small", 0.894, 402.0, 10.3, None),
    ("glyphnet", 0.412, 3110.0, 0.9, "MIT"),
]


def estimate(value: float, width: float) -> Estimate:
    return Estimate(value, max(0.0, value - width), min(1.0, value + 0.8 * width))


def measured(name: str, accuracy: float, rate: float, megabytes: float, licence: str | None) -> Measured:
    candidate = Candidate(
        name,
        (f"model={name}",),
        parameters=int(megabytes * 250_000),
        megabytes=megabytes,
        image_size=224,
        licence=licence,
        images_per_second=rate,
    )
    curve = [
        (count, estimate(accuracy - gap, 0.02 + gap / 2)) for count, gap in ((400, 0.05), (800, 0.02), (1600, 0.0))
    ]
    curve.append((2400, estimate(accuracy + 0.008, 0.022)))
    return Measured(candidate, 1600, estimate(accuracy, 0.018), True, curve, accuracy > 0.94)


def hand_made() -> Advice:
    """Ten backbones of which four may be best, and three that were not measured."""
    backbones = [measured(*figures) for figures in FIGURES]
    others = [
        Candidate(
            "timm/vit_large", (), problem="timm has no network 'vit_large'. Did you mean 'vit_large_patch16_224'?"
        ),
        Candidate(
            "resnet18@old.pth", (), problem="old.pth: no such file of weights. Expected default, null or a <file>."
        ),
        Candidate("vgg19", (), problem="not on this machine: 575 MB to download; advise.fetch=true fetches it"),
    ]
    return Advice(
        measured=backbones,
        others=others,
        recommended=backbones[3],
        reason="resnet50 cannot be told from the best one, and is the fastest of the four that cannot.",
        images=2400,
        classes=12,
        strategy="finetune=none",
        command="python train.py data=imagefolder data.root=photos model=resnet50",
        notes=["vit_b_16 was measured on 800 images only: the five minutes were spent."],
    )
