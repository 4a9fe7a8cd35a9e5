"""Encoder and tile stores in, numbers and a report out.

Names are imported when first used, so that `import simtriplet.evaluate` costs neither torch nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simtriplet.evaluate.embed import EmbedSummary, embed_store
    from simtriplet.evaluate.evaluation import EvaluationResult, EvaluationSettings, evaluate_features
    from simtriplet.evaluate.labels import TileLabels, read_labels
    from simtriplet.evaluate.protocol_registry import PROTOCOLS
    from simtriplet.evaluate.report import write_report

__all__ = [
    "PROTOCOLS",
    "EmbedSummary",
    "EvaluationResult",
    "EvaluationSettings",
    "TileLabels",
    "embed_store",
    "evaluate_features",
    "read_labels",
    "write_report",
]

_HOMES = {
    "PROTOCOLS": "protocol_registry",
    "EmbedSummary": "embed",
    "EvaluationResult": "evaluation",
    "EvaluationSettings": "evaluation",
    "TileLabels": "labels",
    "embed_store": "embed",
    "evaluate_features": "evaluation",
    "read_labels": "labels",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
