"""The evaluation protocols by name; add one to make `evaluate` know it."""

from simtriplet.evaluate.leave_one_out_ensemble import LeaveOneOutEnsemble
from simtriplet.evaluate.linear_probe import LinearProbe
from simtriplet.evaluate.nearest_neighbours import CosineNeighbours
from simtriplet.evaluate.protocol import EvaluationProtocol
from simtriplet.wsi.registry import Registry

__all__ = ["PROTOCOLS"]

PROTOCOLS: Registry[EvaluationProtocol] = Registry("evaluation protocol")
PROTOCOLS.add(LinearProbe.name, LinearProbe())
PROTOCOLS.add(CosineNeighbours.name, CosineNeighbours())
PROTOCOLS.add(LeaveOneOutEnsemble.name, LeaveOneOutEnsemble())
