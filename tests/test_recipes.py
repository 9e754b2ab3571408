"""Recipes: the study's, the learning rate of each step, wrong values."""

import math

import pytest

from siutils.training.recipes import RECIPES, get_recipe, learning_rate


def test_the_studys_recipe_is_the_one_in_the_reference():
    study, efficientnet = RECIPES["study"], get_recipe("study", "efficientnet_b0")
    facts = (study.batch_size, study.epochs, study.lr, study.momentum, study.weight_decay)
    assert facts == (128, 200, 0.1, 0.9, 5e-4)
    assert (study.optimizer, study.nesterov, study.label_smoothing) == ("sgd", False, 0.0)
    assert (study.crop_padding, study.flip, study.rotation, study.bn_images) == (4, True, 15, 0)
    by_epoch = [learning_rate(study, 313 * epoch + 312, 313) for epoch in range(200)]
    expected = [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
    assert by_epoch == pytest.approx(expected)
    first = [learning_rate(study, step, 313) for step in range(313)]
    assert first == pytest.approx([0.1 * (step + 1) / 313 for step in range(313)])
    assert (efficientnet.warmup_epochs, efficientnet.rotation) == (0, 0)
    assert learning_rate(efficientnet, 0, 313) == 0.1


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 7), (3, 5)])
def test_one_cycle_rises_to_the_peak_and_falls_also_in_few_steps(epochs, steps):
    recipe = get_recipe("fast", epochs=epochs, lr=0.4)
    rates = [learning_rate(recipe, step, steps) for step in range(epochs * steps)]
    assert all(0 < rate <= 0.4 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("study", {"schedule": "cosine"}, "schedule"),
        ("study", {"optimizer": "lion"}, "optimizer"),
        ("study", {"epochs": 0}, "epochs"),
        ("study", {"batch_size": 1.5}, "batch_size"),
        ("study", {"lr": math.nan}, "lr"),
        ("study", {"crop_padding": -1}, "crop_padding"),
        ("study", {"average": 1.0}, "average"),
        ("study", {"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16"),
        ("study", {"sides": (0.5, 1.5)}, "sides"),
        ("study", {"validate_every": 0}, "validate_every"),
        ("study", {"bogus": 1}, "bogus"),
        ("studi", {}, "unknown recipe 'studi'; choose one of study, fast"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(name, changes, words):
    with pytest.raises(ValueError, match=words):
        get_recipe(name, **changes)


def test_few_images_make_smaller_batches_at_the_same_rate_per_image():
    whole = get_recipe("fast")
    for images, batch in ((40_000, 128), (2_048, 128), (2_047, 64), (600, 32), (20, 16)):
        recipe = get_recipe("fast", images=images)
        assert (recipe.batch_size, recipe.lr) == (batch, whole.lr * batch / 128)
    assert get_recipe("study", images=600).batch_size == 128
    adamw = get_recipe("fast", "efficientnet_v2_s", images=600)
    assert (adamw.batch_size, adamw.lr) == (32, 0.004)


def test_a_one_cycle_recipe_is_half_a_cosine_after_its_warmup():
    recipe, steps = get_recipe("fast", epochs=200, lr=0.1), math.ceil(40_000 / 256)
    rates = [learning_rate(recipe, step, steps) for step in range(200 * steps)]
    warm = 5 * steps
    assert rates[: warm - 1] == pytest.approx([0.1 * (step + 1) / warm for step in range(warm - 1)])
    total = len(rates)
    for step in range(warm, total, 500):  # half a cosine over the rest, and one step beyond it
        done = (step + 1 - warm) / (total + 1 - warm)
        assert rates[step] == pytest.approx(0.05 * (1 + math.cos(math.pi * done)))
    assert 0 < rates[-1] < 1e-6
