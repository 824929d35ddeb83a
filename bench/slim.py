"""What a budget of milliseconds buys that one of operations does not: a trained network, slimmed by both.

    python bench/slim.py DIR    # DIR holds cifar10/; one core, 12 minutes

The ResNet-20 that is kept with the recipes is narrowed without training: to shares of its operations, a quarter of a
layer at a time, and then to the milliseconds that those subnets take in the engine (one image, one thread). Both see
the same training images; accuracy is that on the test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import rheostat as rh
from rheostat_recipes.data import load
from rheostat_recipes.models.resnet import resnet20

ARTIFACT = (
    Path(rh.__file__).parents[2] / "recipes/rheostat_recipes/results/resnet20_cifar10_distill.safetensors"
)
SHARES = (0.5, 0.7, 0.85)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DIR", type=Path, help="holds cifar10/")
    torch.set_num_threads(1)
    images = load("cifar10", parser.parse_args().data)
    scale = {"mean": images.mean, "std": images.std}
    calibration = rh.ImageLoader(images.train_images[:256], images.train_labels[:256], 128, **scale)
    held_out = rh.ImageLoader(images.train_images[-500:], images.train_labels[-500:], 250, **scale)
    test = rh.ImageLoader(images.test_images, images.test_labels, 500, **scale)
    net = rh.Supernet.load(ARTIFACT, resnet20())
    cost = rh.engine_ms(np.zeros((1, 3, 32, 32), np.float32), repeats=100)
    whole_ms, macs = cost(net.extract(-1)), net.cost(-1).macs
    print(f"whole network: {macs / 1e6:.2f} million multiply-accumulates, {whole_ms:.3f} ms")
    settings = {"step": 0.25, "calibration": calibration}

    by_macs = rh.slim(net, held_out, [share * macs for share in SHARES], **settings)
    times = [cost(by_macs.extract(k)) for k in range(len(SHARES))]
    show("operations", by_macs, times, test)
    by_ms = rh.slim(net, held_out, times, cost=cost, **settings)
    show("milliseconds", by_ms, [cost(by_ms.extract(k)) for k in range(len(SHARES))], test)


def show(budget: str, net: rh.Supernet, times: list[float], test: rh.ImageLoader) -> None:
    accuracy = rh.evaluate(net, test)
    assert isinstance(accuracy, dict)
    for k, ms in enumerate(times):
        widths = " ".join(map(str, net.subnets[k].widths[:-1]))
        size, right = net.cost(k).macs / 1e6, accuracy[net.names[k]]
        print(f"budget of {budget}: {size:6.2f} million, {ms:.3f} ms, {right:.2%}   {widths}", flush=True)


if __name__ == "__main__":
    main()
