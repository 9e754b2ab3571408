"""Trials of training recipes on CIFAR-100: one row of `tuning.csv` for each.

    python benchmarks/tuning.py resnet18 --set epochs=24 lr=0.1

A trial trains on 40,000 images and validates on the other 10,000 training images; the test images
take no part. A trial that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import ast
import csv
from dataclasses import asdict, replace
from pathlib import Path

import torch

from siutils import create_model, load_dataset
from siutils.core import balanced_subset, cache_dir, train_val_split
from siutils.data import transform_for
from siutils.training import fit, get_recipe

TABLE = Path(__file__).with_suffix(".csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the recipe")
    parser.add_argument("--per-class", type=int, default=0, help="training images; 0: all 400")
    parser.add_argument("--size", type=int, default=0, help="side of the network's input, pixels")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    changes = {k: _value(v) for k, _, v in (text.partition("=") for text in options.set)}
    start = {"zero_init_residual": options.network.startswith("efficientnet")}
    train = load_dataset("cifar100")
    fitting, val = (train.subset(part) for part in train_val_split(train.labels, seed=options.seed))
    if options.per_class:
        fitting = fitting.subset(balanced_subset(fitting.labels, options.per_class, options.seed))
    recipe = get_recipe("fast", options.network, len(fitting), **changes)
    transform = transform_for("cifar100")
    if options.size:
        transform = replace(transform, size=options.size)
    model = create_model(options.network, 100, seed=options.seed, **start)
    history = fit(
        model, fitting, val, recipe, transform=transform, seed=options.seed, cache=cache_dir(),
        progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    seconds = history["seconds"].sum()
    row = {
        "network": options.network,
        "images": len(fitting),
        "size": options.size or 32,
        "seed": options.seed,
        "val_accuracy": history["val_accuracy"].max(),
        "minutes": round(seconds / 60, 1),
        "images_per_second": round(len(fitting) * recipe.epochs / seconds),
        "threads": torch.get_num_threads(),
    } | asdict(recipe)
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
