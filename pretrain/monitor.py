"""What features are worth while a run goes on: their rank, what neighbours say of labels, and how much of the slide."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.pretrain.encoder import Encoder, EncoderInfo
from simtriplet.pretrain.feature_vote import balanced_share, neighbour_vote
from simtriplet.pretrain.model import TripletModel
from simtriplet.pretrain.probe import ProbeTiles
from simtriplet.pretrain.rank import effective_rank
from simtriplet.pretrain.settings import PrecisionName

__all__ = ["FeatureMeasures", "MonitorReport", "measure_features"]

_BATCH = 128


@dataclass(frozen=True, slots=True)
class FeatureMeasures:
    """Measured on the probe tiles as they are stored, with the network in evaluation mode.

    Attributes:
        feature_rank: effective rank (RankMe) of the encoder's features.
        z_rank: likewise of the projector's output.
        z_spread_rank: likewise of that output, l2-normalised, about its mean: 1 where all of it lies on a line.
        knn_accuracy: how often the 20 most similar tiles of other patients vote for a tile's label, balanced over the
            classes; None where fewer than two classes or patients have labels.
        slide_leakage: how often the 20 most similar other tiles vote for a tile's slide; None where there is one slide.
        slide_leakage_chance: share of the largest slide, which is what a vote that knows nothing comes to.
        n_tiles: measured on.
    """

    feature_rank: float
    z_rank: float
    z_spread_rank: float
    knn_accuracy: float | None
    slide_leakage: float | None
    slide_leakage_chance: float | None
    n_tiles: int


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """One line of monitor.jsonl.

    Attributes:
        step: steps done.
        epoch: epochs begun.
        loss: mean since the last monitor report.
        terms: the loss's parts, since the last line of metrics.jsonl.
        lr: the encoder's learning rate in the last step.
        z_std: deviation of normalised z in the last step.
        z_std_healthy: 1 / sqrt(d).
        grad_norm: length of the gradient of the last step.
        features: measured on the probe tiles.
        isolated_share: share of the tiles that have no neighbour; None where the objective uses none.
        skipped_steps: that did not change the weights, since the run began.
        data_wait_share: share of the time of a step that went by waiting for tiles.
        gpu_memory_max_bytes: most ever allocated by this process; None on a CPU.
        seconds: what this report cost.
    """

    step: int
    epoch: int
    loss: float
    terms: dict[str, float]
    lr: float
    z_std: float
    z_std_healthy: float
    grad_norm: float | None
    features: FeatureMeasures
    isolated_share: float | None
    skipped_steps: int
    data_wait_share: float
    gpu_memory_max_bytes: int | None
    seconds: float


def measure_features(
    model: TripletModel, info: EncoderInfo, probe: ProbeTiles, *, precision: PrecisionName
) -> FeatureMeasures:
    """Embed the probe and describe its features (a CPU-GPU sync point).

    Weights, batch statistics, random state and training mode are left as they were.

    Args:
        model: in training mode or not.
        info: how tiles become the backbone's images.
        probe: the tiles.
        precision: of the backbone.
    """
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.eval()
            encoder = Encoder(model.backbone, info).to(device)
            parts = [probe.pixels[start : start + _BATCH] for start in range(0, len(probe), _BATCH)]
            features = torch.cat([encoder.embed(part, precision=precision) for part in parts])
            with torch.inference_mode():
                z = model.projector(features)
        finally:
            for module, training in modes:
                module.training = training
    return _describe(features, z, probe)


def _describe(features: Tensor, z: Tensor, probe: ProbeTiles) -> FeatureMeasures:
    slides = probe.slides.to(features.device)
    directions = F.normalize(z.float(), dim=1)
    n_slides = len(set(probe.slides.tolist()))
    leakage = chance = None
    if n_slides > 1:
        votes = neighbour_vote(features, slides, torch.arange(len(slides), device=slides.device))
        leakage = float((votes == slides).double().mean())
        chance = float(torch.bincount(slides).max()) / len(slides)
    return FeatureMeasures(
        feature_rank=effective_rank(features),
        z_rank=effective_rank(z),
        z_spread_rank=effective_rank(directions - directions.mean(dim=0)),
        knn_accuracy=_knn_accuracy(features, probe),
        slide_leakage=leakage,
        slide_leakage_chance=chance,
        n_tiles=len(probe),
    )


def _knn_accuracy(features: Tensor, probe: ProbeTiles) -> float | None:
    labelled = probe.labels >= 0
    codes, patients = (values[labelled] for values in (probe.labels, probe.patients))
    if len(set(codes.tolist())) < 2 or len(set(patients.tolist())) < 2:
        return None
    device = features.device
    votes = neighbour_vote(features[labelled.to(device)], codes.to(device), patients.to(device))
    share = balanced_share(votes.cpu(), codes)
    return share if math.isfinite(share) else None
