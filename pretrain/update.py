"""From views to new weights: micro-batches forward and back, then one update; nothing in here waits for the device."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.loss_terms import LossTerms
from simtriplet.pretrain.model import TripletModel, ViewOutputs
from simtriplet.pretrain.precision import autocast
from simtriplet.pretrain.settings import PrecisionName
from simtriplet.pretrain.step_log import StepOutcome

__all__ = ["BatchLoss", "Updater"]

BatchLoss = Callable[[ViewOutputs, slice], LossTerms]
"""The loss of the outputs of a joint micro-batch, which is the given part of the joint batch."""


class Updater:
    """Turn views into one optimiser step.

    Args:
        model: on its device.
        optimiser: of its parameters; fused SGD, so that the device itself can leave a step out.
        scaler: of the loss, for fp16.
        precision: of the forward pass.
        world: the processes that share the joint batch.
        accumulate: micro-batches a step.
        skip_bad_steps: leave weights and batch statistics as they are where a loss or gradient is not finite.
    """

    def __init__(
        self,
        model: TripletModel,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        precision: PrecisionName,
        world: World,
        accumulate: int,
        skip_bad_steps: bool,
    ) -> None:
        self.optimiser, self.scaler, self.precision, self.world = optimiser, scaler, precision, world
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.accumulate = accumulate
        self.network = world.wrap(model, self.device)
        self._one = torch.ones((), device=self.device)
        self._statistics = list(model.buffers()) if skip_bad_steps else None

    def step(self, views: Tensor, loss_of: BatchLoss, *, measure_gradient: bool) -> StepOutcome:
        """Do one step.

        Args:
            views: (v, n, 3, s, s) float, this process's slice of the joint batch.
            loss_of: gives the loss of a micro-batch.
            measure_gradient: whether the outcome shall tell the gradient's length.
        """
        before = None if self._statistics is None else [each.clone() for each in self._statistics]
        n = views.shape[1] // self.accumulate
        done = [
            self._backward(views[:, i * n : (i + 1) * n], i, loss_of, is_last=i == self.accumulate - 1)
            for i in range(self.accumulate)
        ]
        losses = _mean_of([each[0] for each in done])
        norm = self._gradient_norm() if measure_gradient or before is not None else None
        skipped = self._update(losses.loss, norm, before)
        self.optimiser.zero_grad(set_to_none=True)
        return StepOutcome(losses, torch.cat([each[1] for each in done]), norm, skipped)

    def _backward(self, views: Tensor, number: int, loss_of: BatchLoss, *, is_last: bool) -> tuple[LossTerms, Tensor]:
        with self._gradient_exchange(is_last):
            with autocast(self.device, self.precision):
                outputs: ViewOutputs = self.network(views)  # p and z: v times (n, d)
            joint = self.world.join(outputs)
            n = len(joint.z[0])
            losses = loss_of(joint, slice(number * n, (number + 1) * n))
            self.scaler.scale(losses.loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
        return LossTerms(losses.loss.detach(), losses.terms), joint.z[0].detach()

    def _gradient_exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, with those of the last micro-batch."""
        network: nn.Module = self.network
        if is_last or not isinstance(network, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = network.no_sync()
        return waiting

    def _gradient_norm(self) -> Tensor:
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        scale = self.scaler.scale(self._one)  # on the device; get_scale() would wait for it
        return torch.nn.utils.get_total_norm(gradients) / scale

    def _update(self, loss: Tensor, norm: Tensor | None, before: Sequence[Tensor] | None) -> Tensor | None:
        """Change the weights, or not; return whether they stayed, None where they never do."""
        bad = None
        if before is not None and self._statistics is not None and norm is not None:
            bad = ~(loss.isfinite() & norm.isfinite())
            for statistic, old in zip(self._statistics, before, strict=True):
                torch.where(bad, old, statistic, out=statistic)
        if self.scaler.is_enabled():
            return self._scaled_update()
        if bad is None:
            self.optimiser.step()
            return None
        # What GradScaler tells fused optimisers: where this is 1, the kernel leaves everything as it is.
        self.optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimiser.step()
        del self.optimiser.found_inf  # type: ignore[attr-defined]
        return bad

    def _scaled_update(self) -> Tensor:
        """The scaler leaves a step out whose gradients are not finite, and lowers its scale: that is how one can tell."""
        before = self.scaler.scale(self._one)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        after = self.scaler.scale(self._one)
        return (after < before) | (after == 0)  # after 165 such steps in a row it can be no lower


def _mean_of(parts: Sequence[LossTerms]) -> LossTerms:
    if len(parts) == 1:
        return parts[0]
    names = parts[0].terms
    terms = {name: torch.stack([part.terms[name] for part in parts]).mean() for name in names}
    return LossTerms(torch.stack([part.loss for part in parts]).mean(), terms)
