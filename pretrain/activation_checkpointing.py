"""Less memory for more time: keep what goes into each block of the backbone, and compute the rest again going back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_activations"]


def checkpoint_activations(backbone: nn.Module) -> int:
    """Let every block of the backbone forget its activations; outputs and gradients stay what they were.

    A block is a part of a stage, which has parts of its own; a stage is a sequence that is a child of the backbone, such as
    `layer1` of a ResNet or `blocks` of a transformer. A backbone without such blocks is one.

    Returns:
        The number of blocks.
    """
    stages = [child for child in backbone.children() if isinstance(child, nn.Sequential)]
    # A single layer is no block: a ReLU that works in place would change the input that its checkpoint has to keep.
    blocks = [block for stage in stages for block in stage if any(True for _ in block.children())] or [backbone]
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    return len(blocks)


def _forward(block: nn.Module, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return output


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch normalisations compute as they did without moving their running statistics a second time.

    They still get their buffers, as what autograd saves has to be the same number of tensors both times.
    """
    norms = [module for module in block.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, counted in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counted is None else counted.clone()
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum, norm.num_batches_tracked = momentum, counted
