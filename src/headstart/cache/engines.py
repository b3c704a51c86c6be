"""Engines: ways to compute a frozen network, from the plain module to ONNX Runtime, each held against the plain one."""

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

from headstart.utils.errors import ConfigError, ModelError, brief

log = logging.getLogger(__name__)

# How far the features of any image may be from the plain network's: the norm of the difference over the mean norm of
# features. Folding and another order of additions cost 1e-6 in float32; a wrong graph costs 1e-1.
TOLERANCE = 1e-4
# Images at a time. On two cores, MobileNetV2's activations for 8 fit the cache: 148 images a second folded, and 92
# at 32; ONNX Runtime is as fast from 1 to 32. See benchmarks/README.md.
CPU_BATCH = {"eager": 16, "folded": 8, "onnx": 16}
GPU_BATCH = 64  # 38 MB of images at 224 pixels: several of them have to fit into the memory that processes share

Compute = Callable[[Tensor], Tensor]


class Engine(NamedTuple):
    """A way to compute a network.

    Attributes:
        name: eager, folded or onnx.
        compute: from images, a whole batch on the CPU, to features.
        batch_size: images of a whole batch.
    """

    name: str
    compute: Compute
    batch_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features on the CPU, of any number of images.

        They are computed in whole batches, the last one filled up: some kernels add in another order for another
        batch size, and the features of an image should not depend on how many there are besides.
        """
        parts = []
        for part in torch.split(images, self.batch_size):
            missing = self.batch_size - len(part)
            whole = F.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)) if missing else part
            parts.append(self.compute(whole)[: len(part)].cpu())
        return torch.cat(parts)


class Network:
    """A frozen backbone as Lightning's Trainer would run it.

    Args:
        module: in evaluation mode; it is converted to the precision and moved in place.
        device: where to compute.
        precision: the Trainer's plugin.
    """

    def __init__(self, module: nn.Module, device: torch.device, precision: Precision) -> None:
        self.module = precision.convert_module(module).to(device)
        self.device, self.precision = device, precision
        self._engines: dict[str, Engine] = {}

    @property
    def on_cpu_in_float32(self) -> bool:
        """What the fast engines are for."""
        return self.device.type == "cpu" and self.precision.precision == "32-true"

    @property
    def stored_dtype(self) -> torch.dtype:
        """What features are kept in: float32 holds those of 16 bits too."""
        return torch.float64 if self.precision.precision == "64-true" else torch.float32

    def engine(self, name: str, images: Tensor) -> Engine:
        """The engine of that name, built once; see `build_engine`."""
        if name not in self._engines:
            self._engines[name] = build_engine(name, self, images)
            log.info("features are computed by the %s engine", self._engines[name].name)
        return self._engines[name]

    def batch_size(self, engine: str) -> int:
        """Images of a whole batch of an engine."""
        return CPU_BATCH[engine] if self.device.type == "cpu" else GPU_BATCH

    def run(self, module: nn.Module, images: Tensor) -> Tensor:
        """Features by this module, which is the backbone or another form of it."""
        with torch.inference_mode(), self.precision.forward_context():
            images = self.precision.convert_input(images)
            features: Tensor = module(images.to(self.device, memory_format=torch.channels_last, non_blocking=True))
        return features


def build_engine(name: str, network: Network, images: Tensor) -> Engine:
    """Builds an engine and holds it against the plain network.

    Args:
        name: eager, folded, onnx, or auto for the fastest that is there and agrees.
        network: the backbone.
        images: some to compare on, float32, shape (N, 3, height, width).

    Raises:
        ConfigError: the engine cannot be had here.
        ModelError: its features are not the plain network's.
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
    """Makes sure that an engine can be had here.

    Raises:
        ConfigError: it cannot.
    """
    if name == "onnx" and not has_onnx():
        raise ConfigError('features.engine=onnx needs ONNX Runtime: pip install -e ".[onnx]"')
    if name in ("onnx", "folded") and not network.on_cpu_in_float32:
        raise ConfigError(
            f"features.engine={name} computes on the CPU in float32: use trainer=cpu, or features.engine=auto."
        )


class UnfitError(Exception):
    """An engine cannot compute a network; the message goes on after its name."""


def _checked(name: str, network: Network, images: Tensor, eager: Engine) -> Engine:
    build = {"folded": _folded, "onnx": _onnx}[name]
    size = network.batch_size(name)
    engine = Engine(name, build(network, images[:1].expand(size, -1, -1, -1)), size)
    expected, given = eager(images).double(), engine(images).double()
    finite = expected.isfinite().all(dim=1)  # what is not is another message's business
    if finite.any():
        expected, given = expected[finite], given[finite]
        difference = ((given - expected).norm(dim=1).max() / expected.norm(dim=1).mean().clamp(min=1e-12)).item()
        if not difference <= TOLERANCE:
            raise UnfitError(f"is {difference:.1e} away from the network's own features, more than {TOLERANCE:.0e}")
    return engine


def _folded(network: Network, images: Tensor) -> Compute:
    """BatchNorm folded into the convolutions in front of it (Jacob et al., arXiv:1712.05877, section 3.2)."""
    from torch.fx.experimental.optimization import fuse

    try:
        folded = fuse(network.module).eval().to(memory_format=torch.channels_last)
        network.run(folded, images)
    except Exception as error:  # what tracing does to a network that it cannot follow is anybody's guess
        raise UnfitError(f"cannot follow this network ({brief(error)})") from error
    return lambda batch: network.run(folded, batch)


def _onnx(network: Network, images: Tensor) -> Compute:
    """ONNX Runtime on the CPU, with all threads that torch has."""
    ort: Any = importlib.import_module("onnxruntime")
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _attention_in_steps():
            graph = Path(folder, "backbone.onnx")
            # The exporter by torch.export takes 16 times as long (8 s for MobileNetV2), for the same graph.
            warnings.filterwarnings("ignore", message=r"You are using the legacy TorchScript-based ONNX export")
            warnings.filterwarnings("ignore", message="The feature will be removed", module=r"torch\.onnx")
            warnings.filterwarnings("ignore", category=TracerWarning)  # shapes are fixed here, on purpose
            torch.onnx.export(network.module, (images,), graph, input_names=["images"], dynamo=False)
            options = ort.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # Idle threads would take the cores from the workers that decode: with them, 12 s become 17.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # likewise
        raise UnfitError(f"cannot export this network ({brief(error)})") from error
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.contiguous().numpy()})[0])


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Turns off torch's fused attention, which ONNX has no operator for."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def has_onnx() -> bool:
    """Whether ONNX Runtime and what exports to it are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
