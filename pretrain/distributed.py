"""Several processes, one model: who is first, which part of the joint batch is whose, and what is added over all.

Started by torchrun (`RANK`, `LOCAL_RANK` and `WORLD_SIZE` in the environment) or in a process group that exists already.
Every process draws the same joint batch from the same seed and works on its own slice of it.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simtriplet.pretrain.joint_norm import synchronise_norms
from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.settings import DeviceName
from simtriplet.wsi.errors import TrainingError

__all__ = ["World", "is_first_process", "join_world"]

T = TypeVar("T")


def is_first_process() -> bool:
    """Tell whether this process is the one that writes and speaks: always, unless torchrun started several."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def own(self, values: Tensor, *, n_views: int, accumulate: int) -> Tensor:
        """Return this process's rows of a joint batch.

        The joint batch is cut into micro-batches, and each of them into equal slices, one for each process.

        Args:
            values: (v * n, ...), view after view.
            n_views: v.
            accumulate: micro-batches; together with the processes they divide n.

        Returns:
            (v * n / size, ...), view after view, micro-batch after micro-batch.
        """
        if self.size == 1:
            return values
        rest = values.shape[1:]
        cut = values.reshape(n_views, accumulate, self.size, -1, *rest)
        return cut[:, :, self.rank].reshape(-1, *rest)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return what to call instead of the model, so that gradients are averaged over the processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        # Running statistics come from the joint batch and are the same everywhere: there is nothing to broadcast.
        with warnings.catch_warnings():
            # torch 2.15 wants another name for broadcast_buffers, which older ones do not know
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def prepare(self, model: nn.Module, device: torch.device) -> None:
        """Let the model's batch normalisations see the joint batch."""
        if self.size > 1:
            synchronise_norms(model, device)

    def join(self, outputs: ViewOutputs) -> ViewOutputs:
        """Return the outputs of all processes' slices as one batch, through which gradients flow back.

        Each process then computes the loss of the joint batch, whatever terms it has.
        """
        if self.size == 1:
            return outputs
        stacked = torch.stack([each.float() for each in (*outputs.p, *outputs.z)])  # (2v, n / size, d)
        joint: Tensor = _Gather.apply(stacked, self.rank, self.size)
        parts = joint.unbind()
        return ViewOutputs(parts[: len(outputs.p)], parts[len(outputs.p) :])

    def tell(self, value: T) -> T:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        told: T = box[0]
        return told

    def largest(self, values: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
        """Return the largest of each of several numbers over all processes.

        A CPU-GPU sync point only in a group of the caller's that knows no gloo.
        """
        if self.size == 1:
            return values
        place = torch.device("cpu") if "gloo" in dist.get_backend_config() else device
        votes = torch.tensor(values, dtype=torch.int64, device=place)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(votes.tolist())


class _Gather(torch.autograd.Function):
    """Concatenate the slices of all processes along dimension 1.

    As every process computes the same loss from the whole, it knows the gradient of its own slice without asking. The
    factor is that of the sum over all processes, which the average of the parameters' gradients divides by again.
    """

    @staticmethod
    def forward(context: Any, own: Tensor, rank: int, size: int) -> Tensor:
        context.rank, context.size = rank, size
        parts = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        own = gradients[0].chunk(context.size, dim=1)[context.rank]
        return own * context.size, None, None


@contextmanager
def join_world(device: DeviceName) -> Iterator[World]:
    """Find the processes of this run; the group is opened, and closed at the end, unless it exists already.

    Raises:
        TrainingError: if there are more processes on this machine than GPUs.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield World()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _take_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise TrainingError(f"process {local_rank}: has no GPU of its own among {count}; start fewer with torchrun")
    torch.cuda.set_device(local_rank)
