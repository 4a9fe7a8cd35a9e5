"""The network of a run with everything that changes it: weights, optimiser, loss scale; made, saved and restored together."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from simtriplet.pretrain.activation_checkpointing import checkpoint_activations
from simtriplet.pretrain.compiling import compile_model
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.optimiser import make_optimiser
from simtriplet.pretrain.precision import make_scaler
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.schedule import Schedule
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.update import Updater
from simtriplet.pretrain.weights_file import WeightsFile

__all__ = ["Network"]


class Network:
    """Made from the run's seed, on its device.

    Args:
        settings: of the run.
        place: where and how it computes.
        schedule: of the learning rate.
        world: the processes that share a batch.
        with_predictor: whether the objective uses one.
        restored: whether `restore` follows; the file of the first weights, which may be gone, is not read then.

    Attributes:
        model: encoder f and predictor h.
        optimiser: of their parameters.
        updater: turns views into a step.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        place: RunPlace,
        schedule: Schedule,
        world: World,
        *,
        with_predictor: bool,
        restored: bool = False,
    ) -> None:
        run = settings.run
        torch.manual_seed(run.seed)  # the weights, and whatever a backbone draws while it trains
        first = dataclasses.replace(settings.model, weights=None) if restored else settings.model
        model = make_model(first, with_predictor=with_predictor, image_size_px=settings.data.image_size_px)
        self.model = model.to(place.device).to(memory_format=place.layout)
        world.prepare(self.model, place.device)
        if run.activation_checkpointing:
            checkpoint_activations(self.model.backbone)
        compile_model(self.model, run, place.device, n_processes=world.size)
        self.optimiser = make_optimiser(self.model, settings.optimiser, peak_lr=schedule.peak)
        self.scaler = make_scaler(place.device, place.precision)
        self.updater = Updater(
            self.model,
            self.optimiser,
            self.scaler,
            precision=place.precision,
            world=world,
            accumulate=run.accumulate,
            skip_bad_steps=run.on_nan == "skip",
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {
            "initial_weights": None if self.model.initial_weights is None else tuple(self.model.initial_weights),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def is_finite(self) -> bool:
        """Tell whether every weight, batch statistic and momentum is finite (a CPU-GPU sync point)."""
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [
            value for each in self.optimiser.state.values() for value in each.values() if isinstance(value, Tensor)
        ]
        return bool(torch.stack([tensor.detach().isfinite().all() for tensor in held]).all())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        begun_with = state.get("initial_weights")  # the file may have changed since; older versions did not say
        if begun_with is not None:
            self.model.initial_weights = WeightsFile(*begun_with)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
