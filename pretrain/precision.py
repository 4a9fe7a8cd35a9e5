"""Device, threads and number format: one code path for bf16, fp16 with loss scaling, and fp32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from simtriplet.pretrain.settings import DeviceName, PrecisionName
from simtriplet.wsi.errors import TrainingError

__all__ = ["autocast", "cpu_threads", "float32_rounding", "make_scaler", "pick_device", "pick_precision"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(name: DeviceName) -> torch.device:
    """Return the device; auto is the first GPU, else the CPU.

    Raises:
        TrainingError: if a GPU is asked for and there is none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainingError("device 'cuda': torch finds none here; pass run.device=cpu or install torch with CUDA")
    return torch.device("cuda", torch.cuda.current_device())


def pick_precision(name: PrecisionName, device: torch.device) -> PrecisionName:
    """Return bf16, fp16 or fp32; auto is bf16 on a GPU that has it and fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return name


def autocast(device: torch.device, precision: PrecisionName) -> AbstractContextManager[None]:
    """Return the context in which the network runs; for fp32 it does nothing."""
    return torch.autocast(device.type, dtype=_TYPES[precision], enabled=precision != "fp32")


def make_scaler(device: torch.device, precision: PrecisionName) -> torch.amp.GradScaler:
    """Return the loss scaler; it passes everything through unless the precision is fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def float32_rounding(tf32: bool, device: torch.device) -> Iterator[None]:
    """Let fp32 matrix products and convolutions on a GPU use TensorFloat-32 for a while, or forbid it to them."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn  # its annotations lack `conv`
    places = (torch.backends.cuda.matmul, cudnn.conv)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads for a while; None leaves their number alone."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
