"""SGD over two groups: the encoder, whose learning rate decays, and the predictor, whose does not."""

import torch

from simtriplet.pretrain.model import TripletModel
from simtriplet.pretrain.schedule import Schedule
from simtriplet.pretrain.settings import OptimiserSettings

__all__ = ["make_optimiser", "set_learning_rate"]

_FUSED_DEVICES = ("cpu", "cuda")


def make_optimiser(model: TripletModel, settings: OptimiserSettings, *, peak_lr: float) -> torch.optim.SGD:
    """Make SGD with momentum; fused into one kernel where the device has that.

    The momentum starts as zeros, which changes nothing: torch.optim.SGD would leave it uninitialised where the very first
    step is one that a loss scaler leaves out, and add it to the next.
    """
    predictor = [] if model.predictor is None else list(model.predictor.parameters())
    apart = {id(parameter) for parameter in predictor}
    encoder = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    decays = settings.predictor_decay
    groups = [{"params": encoder, "decays": True}, {"params": predictor, "decays": decays}]
    optimiser = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=peak_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=encoder[0].device.type in _FUSED_DEVICES,
    )
    if settings.momentum:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def set_learning_rate(optimiser: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Give every group its learning rate for `step`; return the encoder's."""
    lr = schedule.learning_rate(step)
    for group in optimiser.param_groups:
        group["lr"] = lr if group["decays"] else schedule.peak
    return lr
