"""Does every recipe learn? Minutes on one CPU core instead of hours; writes benchmarks/recipes.csv.

    OMP_NUM_THREADS=1 SIUTILS_DATA=… .venv/bin/python benchmarks/recipes.py

Ten classes of CIFAR-100, 100 training images each, 16×16 pixels (VGG16: 32×32). A recipe's
schedule is squeezed into few epochs, and batches of 256 or 128 images with their learning rate into
32, else there would be a few dozen steps; nothing else is changed. Accuracy is that of the 1,000
test images of these classes; the best epoch is chosen on 500 other training images. So this shows
that a recipe learns, not which one is best after 200 epochs: strong augmentation costs accuracy in
short trainings.

A row that is there is not trained again, a killed training goes on after its last epoch.
"""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from siutils import create_model, load_dataset
from siutils.checkpoints import replacing
from siutils.data import ImageSet, balanced_subset, train_val_split, transform_for
from siutils.paths import cache_dir
from siutils.provenance import environment_facts, git_state
from siutils.recipes import Recipe, get_recipe
from siutils.training import evaluate, fit

OUT = Path(__file__).with_suffix(".csv")
CLASSES = (
    *("apple", "bicycle", "castle", "cloud", "lion"),
    *("motorcycle", "orange", "rose", "sea", "wardrobe"),
)
RUNS = {  # side of the images, epochs that take about as long
    "resnet18": (16, 5, ("study", "one_cycle", "modern")),
    "efficientnet_b0": (16, 10, ("study_efficientnet", "one_cycle_adamw", "modern")),
    "vgg16": (32, 6, ("one_cycle", "modern", "study")),  # pools five times
}
SEED = 0


def squeezed(name: str, epochs: int) -> Recipe:
    """Batches of at most 32 images, the learning rate in proportion."""
    recipe = get_recipe(name, epochs=epochs)
    batch = min(32, recipe.batch_size)
    return dataclasses.replace(recipe, batch_size=batch, lr=recipe.lr * batch / recipe.batch_size)


def images(size: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """To train on, to choose the epoch by, to test."""
    train, test = (load_dataset("cifar100", split, image_size=size) for split in ("train", "test"))
    chosen = [train.classes.index(name) for name in CLASSES]
    train, test = train.of_classes(chosen), test.of_classes(chosen)
    fitting, val = (train.subset(rows) for rows in train_val_split(train.labels, seed=SEED))
    fitting = fitting.subset(balanced_subset(fitting.labels, 100, seed=SEED))
    return fitting, val.subset(balanced_subset(val.labels, 50, seed=SEED)), test


def main() -> None:
    for network, (size, epochs, recipes) in RUNS.items():
        fitting, val, test = images(size)
        for name in recipes:
            done = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["network", "recipe"])
            if ((done["network"] == network) & (done["recipe"] == name)).any():
                continue
            residual = network.startswith("efficientnet") and not name.startswith("study")
            model = create_model(network, len(CLASSES), seed=SEED, zero_init_residual=residual)
            plan, start = squeezed(name, epochs), time.process_time()
            history = fit(
                model,
                fitting,
                val,
                plan,
                transform=transform_for("cifar100"),
                seed=SEED,
                device="cpu",
                cache=cache_dir(),
                progress=print,
            )
            row = {
                "network": network, "recipe": name, "epochs": epochs, "batch_size": plan.batch_size,
                "lr": plan.lr, "image_size": size,
                "n_train": len(fitting), "n_classes": len(CLASSES),
                "first_train_loss": history["train_loss"].iloc[0],
                "last_train_loss": history["train_loss"].iloc[-1],
                "val_accuracy": history["val_accuracy"].max(),
                "test_accuracy": evaluate(model, test, device="cpu")["accuracy"],
                "chance": 1 / len(CLASSES), "n_test": len(test), "seed": SEED,
                "cpu_time_s": time.process_time() - start,
            }  # fmt: skip
            store(pd.concat([done, pd.DataFrame([row | provenance()])]))


def provenance() -> dict[str, object]:
    git = git_state(OUT.parent.parent)
    return {
        "torch": torch.__version__, "processor": environment_facts()["processor"],
        "commit": git["commit"], "run": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def store(table: pd.DataFrame) -> None:
    with replacing(OUT) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    print(table[["network", "recipe", "test_accuracy", "chance", "cpu_time_s"]].to_string())


if __name__ == "__main__":
    main()
