"""Inference engines for a frozen backbone: eager PyTorch, folded BatchNorm and ONNX Runtime, verified against eager."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.nn import functional as F

from headstart.utils.errors import ConfigError, ModelError, format_error

log = logging.getLogger(__name__)

# Largest relative error of an image's features: the norm of the difference to the eager features, divided by their mean
# norm. Folding and a different order of additions cause about 1e-6 in float32; a wrong graph causes about 1e-1.
TOLERANCE = 1e-4
# Batch sizes. On two cores, MobileNetV2's activations for 8 images fit into the CPU's cache: folded, it computes 148
# images per second at 8 and 92 at 32. ONNX Runtime is equally fast from 1 to 32. See benchmarks/README.md.
CPU_BATCH = {"eager": 16, "folded": 8, "onnx": 16}
GPU_BATCH = 64  # 38 MB of images at 224 pixels: several batches have to fit into shared memory

Compute = Callable[[Tensor], Tensor]


class Engine(NamedTuple):
    """A callable that computes a network's features in one particular way.

    Attributes:
        name: eager, folded or onnx.
        compute: maps a full batch of images on the CPU to features.
        batch_size: number of images in a full batch.
    """

    name: str
    compute: Compute
    batch_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, on the CPU, of any number of images.

        They are computed in full batches, and the last batch is padded with zeros. Some kernels add in a different
        order at a different batch size, and an image's features should not depend on the number of other images.
        """
        parts = []
        for part in torch.split(images, self.batch_size):
            missing = self.batch_size - len(part)
            whole = F.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)) if missing else part
            parts.append(self.compute(whole)[: len(part)].cpu())
        return torch.cat(parts)


class Network:
    """A frozen backbone on the device and in the precision of Lightning's Trainer.

    Args:
        module: the backbone in evaluation mode; it is converted to the precision and moved to the device in place.
        device: device that computes.
        precision: the Trainer's precision plugin.
    """

    def __init__(self, module: nn.Module, device: torch.device, precision: Precision) -> None:
        self.module = precision.convert_module(module).to(device)
        self.device, self.precision = device, precision
        self._engines: dict[str, Engine] = {}

    @property
    def on_cpu_in_float32(self) -> bool:
        """Tell whether the fast engines support this device and precision: only the CPU in float32."""
        return self.device.type == "cpu" and self.precision.precision == "32-true"

    @property
    def stored_dtype(self) -> torch.dtype:
        """Return the dtype of cached features: float64 for 64-bit precision, else float32, which holds 16 bits too."""
        return torch.float64 if self.precision.precision == "64-true" else torch.float32

    def engine(self, name: str, images: Tensor) -> Engine:
        """Return the engine of this name, which the first call builds; see `build_engine` for arguments and errors."""
        if name not in self._engines:
            self._engines[name] = build_engine(name, self, images)
            log.info("features are computed by the %s engine", self._engines[name].name)
        return self._engines[name]

    def batch_size(self, engine: str) -> int:
        """Return the number of images in a full batch of an engine."""
        return CPU_BATCH[engine] if self.device.type == "cpu" else GPU_BATCH

    def run(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return the features that a module computes, on its device; the module is the backbone or a variant of it."""
        with torch.inference_mode(), self.precision.forward_context():
            images = self.precision.convert_input(images)
            features: Tensor = module(images.to(self.device, memory_format=torch.channels_last, non_blocking=True))
        return features


def build_engine(name: str, network: Network, images: Tensor) -> Engine:
    """Build an engine and compare its features with those of the eager network.

    Args:
        name: eager, folded, onnx, or auto for the fastest available engine whose features agree.
        network: the backbone.
        images: images to compare the features of, float32, shape (N, 3, height, width).

    Raises:
        ConfigError: if the engine is not available here.
        ModelError: if the engine cannot run the network, or its features differ by more than `TOLERANCE`.
    """
    check_engine(name, network)
    eager = Engine("eager", lambda batch: network.run(network.module, batch), network.batch_size("eager"))
    if name == "eager":
        return eager
    if name != "auto":
        try:
            return _checked(name, network, images, eager)
        except UnfitError as error:
            raise ModelError(f"features.engine={name} {error}. Use features.engine=auto or eager.") from error
    fast = ("onnx", "folded") if has_onnx() else ("folded",)
    for candidate in fast if network.on_cpu_in_float32 else ():
        try:
            return _checked(candidate, network, images, eager)
        except UnfitError as error:
            log.info("features.engine=auto leaves %s out: it %s", candidate, error)
    return eager


def check_engine(name: str, network: Network) -> None:
    """Check that an engine is installed and supports the network's device and precision.

    Raises:
        ConfigError: if it is not or does not.
    """
    if name == "onnx" and not has_onnx():
        raise ConfigError('features.engine=onnx needs ONNX Runtime: pip install -e ".[onnx]"')
    if name in ("onnx", "folded") and not network.on_cpu_in_float32:
        raise ConfigError(
            f"features.engine={name} computes on the CPU in float32: use trainer=cpu, or features.engine=auto."
        )


class UnfitError(Exception):
    """The error of an engine that cannot compute a network; the message continues a sentence after its name."""


def _checked(name: str, network: Network, images: Tensor, eager: Engine) -> Engine:
    build = {"folded": _folded, "onnx": _onnx}[name]
    size = network.batch_size(name)
    engine = Engine(name, build(network, images[:1].expand(size, -1, -1, -1)), size)
    expected, given = eager(images).double(), engine(images).double()
    finite = expected.isfinite().all(dim=1)  # `features` reports images with non-finite features
    if finite.any():
        expected, given = expected[finite], given[finite]
        difference = ((given - expected).norm(dim=1).max() / expected.norm(dim=1).mean().clamp(min=1e-12)).item()
        if not difference <= TOLERANCE:
            raise UnfitError(f"is {difference:.1e} away from the network's own features, more than {TOLERANCE:.0e}")
    return engine


def _folded(network: Network, images: Tensor) -> Compute:
    """Fold each BatchNorm into the convolution in front of it (Jacob et al., arXiv:1712.05877, section 3.2)."""
    from torch.fx.experimental.optimization import fuse

    try:
        folded = fuse(network.module).eval().to(memory_format=torch.channels_last)
        network.run(folded, images)
    except Exception as error:  # tracing an unsupported network can raise anything
        raise UnfitError(f"cannot follow this network ({format_error(error)})") from error
    return lambda batch: network.run(folded, batch)


def _onnx(network: Network, images: Tensor) -> Compute:
    """Export the network to ONNX and run it by ONNX Runtime on the CPU, with as many threads as torch uses."""
    ort: Any = importlib.import_module("onnxruntime")
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _attention_in_steps():
            graph = Path(folder, "backbone.onnx")
            # The exporter based on torch.export takes 16 times as long (8 s for MobileNetV2) for the same graph.
            warnings.filterwarnings("ignore", message=r"You are using the legacy TorchScript-based ONNX export")
            warnings.filterwarnings("ignore", message="The feature will be removed", module=r"torch\.onnx")
            warnings.filterwarnings("ignore", category=TracerWarning)  # fixed shapes are intended
            torch.onnx.export(network.module, (images,), graph, input_names=["images"], dynamo=False)
            options = ort.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # Spinning threads would take the cores from the workers that decode: 17 s instead of 12 s.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # exporting an unsupported network can raise anything
        raise UnfitError(f"cannot export this network ({format_error(error)})") from error
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.contiguous().numpy()})[0])


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Disable torch's fused attention, which ONNX has no operator for."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def has_onnx() -> bool:
    """Tell whether ONNX, its exporter and ONNX Runtime are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
