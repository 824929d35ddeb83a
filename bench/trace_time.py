"""How long `trace` and the construction of a supernet take: `python bench/trace_time.py`.

Bars: ResNet-50 traces in under 5 s, a 12-layer BERT in under 10 s. Prints one line a model; seconds, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.models.resnet import resnet18, resnet20, resnet50


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = {
        "input_ids": torch.randint(0, 1000, (1, 128)),
        "attention_mask": torch.ones(1, 128, dtype=torch.long),
    }
    models: tuple[tuple[str, Callable[[], nn.Module], object], ...] = (
        ("ResNet-20, 32x32", resnet20, torch.randn(1, 3, 32, 32)),
        ("ResNet-18, 224x224", resnet18, torch.randn(1, 3, 224, 224)),
        ("ResNet-50, 224x224", resnet50, torch.randn(1, 3, 224, 224)),
        ("BERT-base, 12 layers, 128 tokens", bert, ids),
    )
    rh.trace(nn.Linear(2, 2), torch.randn(1, 2))  # torch.export's imports are not part of the measurement
    print(f"{'model':34} {'groups':>6} {'prunable':>8} {'trace s':>8} {'supernet s':>10}")
    for name, build, example in models:
        model = build()
        start = time.perf_counter()
        graph = rh.trace(model, example)
        traced = time.perf_counter()
        rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, 0.75, 1.0)))
        built = time.perf_counter()
        prunable = sum(g.pinned is None for g in graph.groups)
        print(f"{name:34} {len(graph.groups):6} {prunable:8} {traced - start:8.2f} {built - traced:10.2f}")


if __name__ == "__main__":
    main()
