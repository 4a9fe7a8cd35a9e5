"""Learn from triplets in a loop of your own: `python examples/own_training_loop.py stores --steps 100`.

Any framework that takes a PyTorch DataLoader takes the dataset; this loop is plain PyTorch, its loss that of SimTriplet with the
stop-gradient.
"""

import argparse
import sys

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from torchvision.transforms import v2

from simtriplet.pretrain import Triplet, TripletDataset
from simtriplet.wsi import SimTripletError


def make_loader(stores: list[str], size_px: int, batch_size: int) -> "DataLoader[Triplet]":
    """Return a plain DataLoader of three views, (n, 3, s, s) float each."""
    views = v2.Compose(
        [
            v2.RandomResizedCrop(size_px, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.2, 0.05),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    dataset = TripletDataset(stores, transform=views)
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)


class SimTripletNetwork(nn.Module):
    """Encoder, projector and predictor."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.encoder = resnet18()
        self.encoder.fc = nn.Identity()
        self.projector = nn.Sequential(
            nn.Linear(512, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim), nn.BatchNorm1d(dim)
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, dim // 4), nn.BatchNorm1d(dim // 4), nn.ReLU(), nn.Linear(dim // 4, dim)
        )

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return prediction and stopped projection of (n, 3, s, s) views, (n, dim) each."""
        z = self.projector(self.encoder(view))
        return self.predictor(z), z.detach()


def distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Symmetric negative cosine of predictions and stopped projections (SimSiam, equation 2)."""
    return -(F.cosine_similarity(first[0], second[1]).mean() + F.cosine_similarity(second[0], first[1]).mean()) / 2


def main() -> None:
    """Train for some steps and save the encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=96, help="side of a view, pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", default="encoder.pt")
    options = parser.parse_args()
    torch.manual_seed(0)
    loader = make_loader(options.stores, options.size, options.batch_size)
    if not len(loader):
        parser.error(
            f"{len(loader.dataset)} tiles do not fill a batch of {options.batch_size}; pass a smaller --batch-size"
        )
    network = SimTripletNetwork()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=0.05 * options.batch_size / 256, momentum=0.9, weight_decay=1e-4
    )
    step = 0
    while step < options.steps:
        for triplet in loader:
            first, second, neighbour = (network(view) for view in triplet)
            loss = distance(first, second) + distance(second, neighbour)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step % 10 == 0 or step == options.steps:
                print(f"step {step}: loss {loss.item():.4f}")
            if step == options.steps:
                break
    torch.save(network.encoder.state_dict(), options.out)


if __name__ == "__main__":
    try:
        main()
    except SimTripletError as error:
        sys.exit(f"Error: {error}")
