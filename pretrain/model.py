"""Encoder f = backbone + projector, and predictor h, as SimTriplet and SimSiam have them."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from simtriplet.pretrain.backbone import Backbone, make_backbone
from simtriplet.pretrain.compiled_part import begin_graphs, compile_part
from simtriplet.pretrain.settings import LastNorm, ModelSettings
from simtriplet.pretrain.weights_file import WeightsFile

__all__ = ["TripletModel", "ViewOutputs", "make_model", "make_predictor", "make_projector"]


class ViewOutputs(NamedTuple):
    """What the network says of each view, in view order: anchor 1, anchor 2 and, where it is used, the neighbour.

    Attributes:
        p: (n, d) per view, h(f(x)); empty where the objective uses no predictor.
        z: (n, d) per view, f(x), with its gradient: an objective that stops it does so itself.
    """

    p: tuple[Tensor, ...]
    z: tuple[Tensor, ...]


def make_projector(in_dim: int, dim: int, last_norm: LastNorm) -> nn.Sequential:
    """Make three linear layers with batch normalisation each, ReLU between them and none at the end.

    A linear layer in front of a batch normalisation has no bias, which the normalisation would cancel; the SimSiam
    authors do the same (https://github.com/facebookresearch/simsiam). Its hidden layers are as wide as its output.
    """
    layers: list[nn.Module] = []
    for width in (in_dim, dim):
        layers += [nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(dim, dim, bias=last_norm == "none"))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(dim, affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def make_predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """Make the bottleneck d -> hidden (BN, ReLU) -> d; its last layer has a bias and no normalisation."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim),
    )


class TripletModel(nn.Module):
    """Map the views of a batch of triplets to p and z.

    Args:
        backbone: the image network.
        projector: (n, feature_dim) to (n, d).
        predictor: (n, d) to (n, d), or None.
        initial_weights: the file that the backbone starts from, None where it starts from random weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        projector: nn.Module,
        predictor: nn.Module | None,
        *,
        initial_weights: WeightsFile | None = None,
    ) -> None:
        super().__init__()
        self.initial_weights = initial_weights
        self.backbone = backbone.module
        self.feature_dim = backbone.feature_dim
        self.projector = projector
        self.predictor = predictor
        self._compiled_encode: Callable[[Tensor], Tensor] | None = None
        self._compiled_predict: Callable[[Tensor], Tensor] | None = None
        self._mode: str | None = None  # of torch.compile; where there is one, z lies in memory that is written over

    def compile_encoder(self, *, mode: str | None = None) -> None:
        """Compile f = backbone + projector when it first runs; parameters, buffers and their names stay.

        Args:
            mode: of torch.compile.
        """
        self._compiled_encode = compile_part(self._encode, mode=mode)
        self._mode = mode

    def compile_predictor(self, *, mode: str | None = None) -> None:
        """Compile h when it first runs; parameters, buffers and their names stay.

        Args:
            mode: of torch.compile.
        """
        if self.predictor is not None:
            self._compiled_predict = compile_part(self.predictor.forward, mode=mode)

    def _encode(self, view: Tensor) -> Tensor:
        z: Tensor = self.projector(self.backbone(view))
        return z

    def forward(self, views: Tensor) -> ViewOutputs:
        """Encode each view on its own, so that batch normalisation sees the statistics of one view at a time.

        Args:
            views: (v, n, 3, s, s) float.
        """
        begin_graphs(self._mode)
        encode = self._compiled_encode or self._encode
        z = tuple(encode(view) for view in views)
        predict = self._compiled_predict or self.predictor
        p = () if predict is None else tuple(predict(each) for each in z)
        return ViewOutputs(p, z if self._mode is None else tuple(each.clone() for each in z))


def make_model(settings: ModelSettings, *, with_predictor: bool, image_size_px: int | None = None) -> TripletModel:
    """Make the network with random weights (from torch's global generator) or with the backbone file it names.

    Args:
        settings: of the network.
        with_predictor: whether the objective uses one.
        image_size_px: side of the images it will see, for backbones of timm that are made for one.

    Raises:
        UnknownNameError: if there is no such backbone.
        CheckpointError: if the backbone's file does not fit.
        SettingsError: if the backbone takes no images of that size.
    """
    file = settings.weights
    initial = None if file is None else WeightsFile.of(file)
    backbone = make_backbone(
        settings.backbone,
        zero_init_residual=settings.zero_init_residual,
        weights=file,
        image_size_px=image_size_px,
    )
    projector = make_projector(backbone.feature_dim, settings.projector_dim, settings.last_norm)
    predictor = make_predictor(settings.projector_dim, settings.predictor_dim) if with_predictor else None
    return TripletModel(backbone, projector, predictor, initial_weights=initial)
