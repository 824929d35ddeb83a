"""Accuracy of the published ResNet-20 on CIFAR-10 in float32, 8 and 16 bits, through the engine.

python bench/quantise_resnet20.py DIR    # with cifar10/ and resnet_cifar10/; minutes on one thread
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import rheostat as rh
from rheostat_recipes.data import load
from rheostat_recipes.models.resnet import load_published, resnet20

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", metavar="DIR", type=Path, help="holds cifar10/ and resnet_cifar10/")
data: Path = parser.parse_args().data
model, images = resnet20(), load("cifar10", data)
load_published(model, data / "resnet_cifar10" / "resnet20-12fca82f.th")
graph = rh.trace(model.eval(), torch.zeros(2, 3, 32, 32))
net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
chosen = np.random.default_rng(0).permutation(len(images.train_images))[:512]
calibration = torch.from_numpy(images.normalized(images.train_images[chosen])).split(64)
x, y = images.normalized(images.test_images), images.test_labels


def accuracy(path: Path) -> float:
    with rh.Engine(path, threads=1) as engine:
        right = [engine(x[i : i + 250]).argmax(1) == y[i : i + 250] for i in range(0, len(x), 250)]
    return float(np.concatenate(right).mean())


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "resnet20.safetensors"
    rh.save(net, path)
    print(f"float32: {accuracy(path):.2%}, {path.stat().st_size:,} bytes")
    for bits in (8, 16):
        for ranges in ("max", "percentile"):
            rh.quantize(net, calibration, bits, ranges=ranges).save(path)
            print(f"{bits} bit, {ranges}: {accuracy(path):.2%}, {path.stat().st_size:,} bytes")
