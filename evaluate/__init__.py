"""Encoder and tile stores in, numbers and a report out.

Names are imported when first used, so that `import simtriplet.evaluate` costs neither torch nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simtriplet.evaluate.classifier import Classifier
    from simtriplet.evaluate.comparison import ComparedEncoder, Comparison, ComparisonSettings
    from simtriplet.evaluate.comparison_measurement import compare_encoders
    from simtriplet.evaluate.comparison_report import write_comparison
    from simtriplet.evaluate.embed import EmbedSummary, embed_store
    from simtriplet.evaluate.evaluation import EvaluationResult, EvaluationSettings, evaluate_features
    from simtriplet.evaluate.feature_file import write_feature_file
    from simtriplet.evaluate.label_curve import LabelCurve
    from simtriplet.evaluate.label_curve_files import write_label_curves
    from simtriplet.evaluate.label_efficiency import measure_label_curve
    from simtriplet.evaluate.labels import TileLabels, read_labels
    from simtriplet.evaluate.paired import PairedDifference, compare_curves, compare_paired
    from simtriplet.evaluate.prediction import SlidePrediction, predict_slide
    from simtriplet.evaluate.prediction_files import write_prediction
    from simtriplet.evaluate.protocol_registry import PROTOCOLS
    from simtriplet.evaluate.report import write_report
    from simtriplet.evaluate.saved_head import SavedHead, fit_head, fit_result_head, load_head, save_head
    from simtriplet.evaluate.supervised import train_classifier
    from simtriplet.evaluate.supervised_evaluation import evaluate_supervised, supervised_curve
    from simtriplet.evaluate.supervised_settings import SupervisedSettings

__all__ = [
    "PROTOCOLS",
    "Classifier",
    "ComparedEncoder",
    "Comparison",
    "ComparisonSettings",
    "EmbedSummary",
    "EvaluationResult",
    "EvaluationSettings",
    "LabelCurve",
    "PairedDifference",
    "SavedHead",
    "SlidePrediction",
    "SupervisedSettings",
    "TileLabels",
    "compare_curves",
    "compare_encoders",
    "compare_paired",
    "embed_store",
    "evaluate_features",
    "evaluate_supervised",
    "fit_head",
    "fit_result_head",
    "load_head",
    "measure_label_curve",
    "predict_slide",
    "read_labels",
    "save_head",
    "supervised_curve",
    "train_classifier",
    "write_comparison",
    "write_feature_file",
    "write_label_curves",
    "write_prediction",
    "write_report",
]

_HOMES = {
    "PROTOCOLS": "protocol_registry",
    "Classifier": "classifier",
    "ComparedEncoder": "comparison",
    "Comparison": "comparison",
    "ComparisonSettings": "comparison",
    "compare_encoders": "comparison_measurement",
    "write_comparison": "comparison_report",
    "EmbedSummary": "embed",
    "EvaluationResult": "evaluation",
    "EvaluationSettings": "evaluation",
    "LabelCurve": "label_curve",
    "PairedDifference": "paired",
    "SavedHead": "saved_head",
    "SlidePrediction": "prediction",
    "SupervisedSettings": "supervised_settings",
    "TileLabels": "labels",
    "compare_curves": "paired",
    "compare_paired": "paired",
    "embed_store": "embed",
    "evaluate_features": "evaluation",
    "evaluate_supervised": "supervised_evaluation",
    "fit_head": "saved_head",
    "fit_result_head": "saved_head",
    "load_head": "saved_head",
    "measure_label_curve": "label_efficiency",
    "predict_slide": "prediction",
    "read_labels": "labels",
    "save_head": "saved_head",
    "supervised_curve": "supervised_evaluation",
    "train_classifier": "supervised",
    "write_feature_file": "feature_file",
    "write_label_curves": "label_curve_files",
    "write_prediction": "prediction_files",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
