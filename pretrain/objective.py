"""The objectives by name: SimTriplet, SimSiam, and variance and redundancy terms on the same three views."""

from collections.abc import Callable

from simtriplet.pretrain.barlow import BarlowTwinsObjective
from simtriplet.pretrain.loss_terms import LossTerms, Objective
from simtriplet.pretrain.settings import ObjectiveSettings
from simtriplet.pretrain.stop_gradient import SimTripletObjective, negative_cosine
from simtriplet.pretrain.vicreg import VicRegObjective
from simtriplet.wsi.registry import Registry

__all__ = [
    "OBJECTIVES",
    "BarlowTwinsObjective",
    "LossTerms",
    "Objective",
    "SimTripletObjective",
    "VicRegObjective",
    "make_objective",
    "negative_cosine",
]

OBJECTIVES: Registry[Callable[[ObjectiveSettings], Objective]] = Registry("objective")
OBJECTIVES.add("simtriplet", lambda settings: SimTripletObjective(settings.inter_weight))
OBJECTIVES.add("simsiam", lambda settings: SimTripletObjective(0.0))
OBJECTIVES.add("vicreg", VicRegObjective)
OBJECTIVES.add("barlow", BarlowTwinsObjective)


def make_objective(settings: ObjectiveSettings) -> Objective:
    """Make the objective the settings name.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    return OBJECTIVES.get(settings.name)(settings)
