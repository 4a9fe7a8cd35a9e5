"""The network of a run with everything that changes it: weights, optimiser, loss scale; made, saved and restored together."""

from typing import Any

import torch

from simtriplet.pretrain.activation_checkpointing import checkpoint_activations
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.optimiser import make_optimiser
from simtriplet.pretrain.precision import make_scaler
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.schedule import Schedule
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.update import Updater

__all__ = ["Network"]


class Network:
    """Made from the run's seed, on its device.

    Args:
        settings: of the run.
        place: where and how it computes.
        schedule: of the learning rate.
        world: the processes that share a batch.
        with_predictor: whether the objective uses one.

    Attributes:
        model: encoder f and predictor h.
        optimiser: of their parameters.
        updater: turns views into a step.
    """

    def __init__(
        self, settings: PretrainSettings, place: RunPlace, schedule: Schedule, world: World, *, with_predictor: bool
    ) -> None:
        run = settings.run
        torch.manual_seed(run.seed)  # the weights, and whatever a backbone draws while it trains
        model = make_model(settings.model, with_predictor=with_predictor)
        self.model = model.to(place.device).to(memory_format=place.layout)
        world.prepare(self.model, place.device)
        if run.activation_checkpointing:
            checkpoint_activations(self.model.backbone)
        if run.compile:
            self.model.compile_encoder()
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
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
