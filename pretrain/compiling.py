"""What goes through torch.compile, by `run.compile`: nothing, the encoder, or all that a step computes."""

import torch
from torch import Tensor

from simtriplet.pretrain.compiled_part import compile_part
from simtriplet.pretrain.loss_terms import LossTerms, Objective
from simtriplet.pretrain.model import TripletModel, ViewOutputs
from simtriplet.pretrain.objective import make_objective
from simtriplet.pretrain.settings import PretrainSettings, RunSettings
from simtriplet.pretrain.views import ViewMaker
from simtriplet.wsi.errors import TrainingError

__all__ = ["CompiledObjective", "compile_model", "make_run_objective", "make_run_views"]


def compile_model(model: TripletModel, run: RunSettings, device: torch.device, *, n_processes: int = 1) -> None:
    """Compile what `run.compile` says of the network; parameters, buffers and their names stay.

    Raises:
        TrainingError: if a whole step is to be compiled that several processes share.
    """
    if run.compiled == "encoder":
        model.compile_encoder()
    if run.compiled != "step":
        return
    if n_processes > 1:
        raise TrainingError(f"run.compile 'step': is for one process, not {n_processes}; pass run.compile=encoder")
    model.compile_encoder(mode=_mode(run, device))
    model.compile_predictor(mode=_mode(run, device))


def make_run_objective(settings: PretrainSettings, device: torch.device) -> Objective:
    """Make the objective of a run, compiled where the whole step is.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    objective = make_objective(settings.objective)
    run = settings.run
    return CompiledObjective(objective, mode=_mode(run, device)) if run.compiled == "step" else objective


def make_run_views(settings: PretrainSettings, device: torch.device) -> ViewMaker:
    """Make the view maker of a run, compiled where the whole step is."""
    views = ViewMaker(settings.views, image_size_px=settings.data.image_size_px)
    if settings.run.compiled == "step":
        views.compile(mode=_mode(settings.run, device))
    return views


def _mode(run: RunSettings, device: torch.device) -> str | None:
    """CUDA graphs on a GPU; not for micro-batches, as gradients would be added up in the memory of a graph that runs again."""
    return "reduce-overhead" if device.type == "cuda" and run.accumulate == 1 else None


class CompiledObjective:
    """An objective whose losses outlive the next step, which may write over the memory of a CUDA graph.

    Args:
        objective: what to compile when it is first called.
        mode: of torch.compile.
    """

    def __init__(self, objective: Objective, *, mode: str | None) -> None:
        self.uses_neighbour = objective.uses_neighbour
        self.uses_predictor = objective.uses_predictor
        self._compute = compile_part(objective.__call__, mode=mode)

    def __call__(
        self, outputs: ViewOutputs, *, warm_in: Tensor | float = 1.0, pair_weights: Tensor | None = None
    ) -> LossTerms:
        """See Objective."""
        losses = self._compute(outputs, warm_in=warm_in, pair_weights=pair_weights)
        return LossTerms(losses.loss.clone(), {name: term.clone() for name, term in losses.terms.items()})
