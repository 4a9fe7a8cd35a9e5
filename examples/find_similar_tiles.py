"""Find the tiles most like one: `python examples/find_similar_tiles.py stores --encoder runs/first --tile 3`."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from simtriplet.pretrain import load_encoder
from simtriplet.wsi import SimTripletError, open_stores


def main() -> None:
    """Write a strip: the tile asked for, and the most similar tiles of the same store after it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument(
        "--encoder", default="random:resnet18:64", help="run folder, file, or a name as simtriplet embed takes"
    )
    parser.add_argument("--tile", type=int, default=0, help="number of the tile in the first store")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("similar.png"))
    options = parser.parse_args()
    store = open_stores(options.stores)[0]
    if not 0 <= options.tile < len(store):
        parser.error(f"tile {options.tile}: the first store has {len(store)} tiles, counted from 0")
    encoder = load_encoder(options.encoder)
    parts = np.array_split(np.arange(len(store)), max(1, len(store) // 64))
    features = np.concatenate([encoder.embed(store.images.read(ids)).cpu().numpy() for ids in parts])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    likeness = features @ features[options.tile]
    nearest = np.argsort(-likeness)[: options.k + 1]
    for tile in nearest:
        x, y = store.base_xy()[tile]
        print(f"tile {tile} at ({x}, {y}): cosine {likeness[tile]:.4f}")
    Image.fromarray(np.concatenate(list(store.images.read(nearest)), axis=1)).save(options.out)


if __name__ == "__main__":
    try:
        main()
    except SimTripletError as error:
        sys.exit(f"Error: {error}")
