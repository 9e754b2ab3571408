"""Fit and evaluate: learning, the recipes' definition, errors."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from training_runs import (
    AVERAGED,
    HALF,
    QUICK,
    assert_same,
    fitted,
    no_dropout,
    same_weights,
    small_net,
    stop_after,
    stripes,
)

from siutils.training import precision
from siutils.training.augmentation import augment
from siutils.training.evaluation import evaluate
from siutils.training.recipes import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


def batches(model, recipe=QUICK, **options):
    """Trains a model and returns the inputs of its training steps."""
    seen = []
    model.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone()) if m.training else None)
    fitted(recipe, model=model, **options)
    return seen


def test_fit_learns_and_ends_with_the_best_weights_in_eval_mode():
    lines = []
    model, history = fitted(progress=lines.append)
    columns = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
    assert list(history.columns) == columns
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/4: lr")
    assert not model.training
    assert model.transform == HALF
    scores = evaluate(model, stripes(30, seed=1), device="cpu")
    assert scores["accuracy"] == history["val_accuracy"].max() > 0.9
    last_best = history[history.val_accuracy == history.val_accuracy.max()].iloc[-1]
    assert scores["loss"] == last_best.val_loss


def test_each_epoch_has_the_learning_rates_of_its_own_steps():
    recipe = dataclasses.replace(QUICK, schedule="one_cycle")
    _, history = fitted(recipe)
    rates = torch.tensor([learning_rate(recipe, step, 3) for step in range(12)])
    assert history["lr"].tolist() == pytest.approx(rates.reshape(4, 3).mean(1).tolist())


def test_each_epoch_has_its_own_order_of_images():
    recipe = dataclasses.replace(QUICK, crop_padding=0, rotation=0, flip=False, batch_size=48)
    first, second = batches(small_net(), recipe, train=stripes(48), epochs=2)
    assert not first.equal(second)
    in_order = [batch.sum((1, 2, 3)).sort().values for batch in (first, second)]
    assert torch.allclose(*in_order)


def test_adamw_learns_too():
    _, history = fitted(dataclasses.replace(QUICK, optimizer="adamw", lr=0.01, label_smoothing=0.1))
    assert history["val_accuracy"].max() > 0.9


def test_evaluate_equals_a_plain_loop_and_restores_the_modes():
    model = small_net().train()
    model[1].eval()
    model.transform = HALF
    data = stripes(23)
    scores = evaluate(model, data, device="cpu", batch_size=5)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    with torch.no_grad():
        logits = model.eval()((data.images.float() / 255 - 0.5) / 0.5).double()
    assert scores["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, data.labels)))
    assert scores["accuracy"] == float((logits.argmax(1) == data.labels).double().mean())


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fitted()
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(6)
    assert_same(first, fitted())
    assert not same_weights(first[0], fitted(seed=1)[0])


def test_batchnorm_statistics_are_those_of_the_final_weights():
    recipe = dataclasses.replace(QUICK, epochs=1, bn_images=1000, batch_size=49)
    train = stripes(49)
    model, _ = fitted(recipe, train=train)
    assert model[1].momentum == 0.1
    with torch.no_grad():
        activations = model[0](HALF(train.images))
    assert torch.allclose(model[1].running_mean, activations.mean((0, 2, 3)), atol=1e-5)
    lagging, _ = fitted(dataclasses.replace(recipe, bn_images=0), train=train)
    assert not torch.allclose(lagging[1].running_mean, activations.mean((0, 2, 3)), atol=1e-2)


# Smoothed labels, decayed weights, averaged weights


def test_an_epoch_is_that_of_its_definition():
    """A plain loop with the formulas written out; the augmentation has tests of its own."""
    recipe = dataclasses.replace(AVERAGED, epochs=1, average=0.25)
    train, model, oracle = stripes(80), no_dropout(), no_dropout()
    generator = torch.Generator().manual_seed(7 * 1_000_003)
    order = torch.randperm(80, generator=generator)
    average = {name: value.clone() for name, value in oracle.state_dict().items()}
    speed = {name: torch.zeros_like(p) for name, p in oracle.named_parameters()}
    cosine = [(1 + math.cos(math.pi * done / 4.5)) / 2 for done in (0.5, 1.5, 2.5, 3.5)]
    rates, losses, correct = [0.05 / 1.5, *(0.05 * factor for factor in cosine)], [], 0
    for step, rows in enumerate(order.split(16)):
        logits = oracle(HALF(augment(train.images[rows], recipe, generator)))
        target = nn.functional.one_hot(train.labels[rows], 3)
        correct += int((logits.argmax(1) == target.argmax(1)).sum())
        loss = -((0.9 * target + 0.1 / 3) * logits.log_softmax(1)).sum(1).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, oracle.parameters())
        with torch.no_grad():
            for (name, p), slope in zip(oracle.named_parameters(), gradients, strict=True):
                slope = slope + 1e-3 * p * (p.ndim > 1)
                speed[name] = 0.9 * speed[name] + slope
                p -= rates[step] * (slope + 0.9 * speed[name])
        decay = min(0.25, (1 + step) / (10 + step)) if step else 0.0  # the first step is copied
        for name, value in oracle.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    val = stripes(9, seed=1)
    _, history = fitted(recipe, model=model, train=train, val=val, seed=7)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, average[name], atol=1e-5), name
    assert model[1].num_batches_tracked == 5
    assert history["train_loss"].item() == pytest.approx(sum(losses) / 5, rel=1e-4)
    assert history["train_accuracy"].item() == correct / 80
    assert history["lr"].item() == pytest.approx(sum(rates) / 5)
    assert history["val_loss"].item() == evaluate(model, val, device="cpu")["loss"]


def test_batches_and_weights_are_channels_last():
    model = no_dropout()
    for tensor in (*batches(model, AVERAGED, epochs=1), model[0].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_learns_with_float32_weights():
    exact, _ = fitted()
    low = dataclasses.replace(QUICK, dtype="bfloat16")
    dtypes, model = [], small_net()
    model[0].register_forward_hook(lambda m, x, out: dtypes.append((m.training, out.dtype)))
    _, history = fitted(low, model=model)
    assert history["val_accuracy"].max() > 0.9
    assert (True, torch.bfloat16) in dtypes
    assert (False, torch.bfloat16) not in dtypes
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not same_weights(exact, model)


def test_auto_is_the_faster_dtype_measured_once(tmp_path, monkeypatch):
    seconds, measured = {"float32": 2.0, "bfloat16": 1.0}, []

    def measure(model, train, recipe):
        measured.append(recipe.dtype)
        return seconds[recipe.dtype]

    monkeypatch.setattr(precision, "seconds_of_a_step", measure)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    auto = dataclasses.replace(QUICK, dtype="auto")
    low, _ = fitted(dataclasses.replace(QUICK, dtype="bfloat16"))
    for _ in range(2):
        model, _ = fitted(auto, tmp_path)
        assert same_weights(model, low)
        seconds["bfloat16"] = 3.0  # a later measurement does not count
    assert measured == ["float32", "bfloat16"]
    assert same_weights(fitted(auto)[0], fitted()[0])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(precision, "seconds_of_a_step", None)  # nothing to measure
    assert same_weights(fitted(auto)[0], fitted()[0])


def test_measuring_a_step_leaves_the_model_alone():
    model, data = small_net(), stripes(16)
    model.transform = HALF
    assert precision.seconds_of_a_step(model, data, QUICK) > 0
    assert same_weights(model, small_net())
    assert all(p.grad is None for p in model.parameters())


def test_validation_every_third_epoch_and_at_the_end():
    sparse = dataclasses.replace(QUICK, validate_every=3)
    (model, history), (_, full) = fitted(sparse), fitted()
    assert history["val_loss"].isna().tolist() == [True, True, False, False]
    assert history["train_loss"].tolist() == full["train_loss"].tolist()
    best = evaluate(model, stripes(30, seed=1), device="cpu")["accuracy"]
    assert best == history["val_accuracy"].max()


def test_the_sides_of_the_input_grow_with_the_epochs():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    recipe = dataclasses.replace(QUICK, sides=(0.5, 1.0), epochs=2, batch_size=49)
    assert [len(batch[0, 0]) for batch in batches(model, recipe)] == [4, 8]


# Wrong inputs


FOUR = stripes(20, classes=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": FOUR}, r"labels of train run from 0 to 3.*3 outputs"),
        ({"val": FOUR}, r"labels of val run from 0 to 3.*3 outputs"),
        ({"recipe": dataclasses.replace(QUICK, batch_size=1)}, r"BatchNorm.*batch_size=1"),
        ({"train": stripes(1)}, r"BatchNorm.*1 training images"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(**options)


def test_what_cannot_be_evaluated_is_refused():
    model = small_net()
    with pytest.raises(ValueError, match=r"model\.transform is not set"):
        evaluate(model, stripes(9), device="cpu")
    model.transform = HALF
    with pytest.raises(ValueError, match=r"labels of data run from 0 to 3.*3 outputs"):
        evaluate(model, FOUR, device="cpu")


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(RuntimeError, match=r"loss is (nan|inf) in epoch \d at a learning rate of"):
        fitted(dataclasses.replace(QUICK, lr=1e30))


def test_a_last_batch_of_one_image_is_left_out_only_because_of_batchnorm():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    for model, sizes in ((small_net(), [16, 16]), (plain, [16, 16, 1])):
        assert [len(x) for x in batches(model, train=stripes(33), epochs=1)] == sizes


@pytest.mark.cuda
def test_training_on_cuda_learns_and_resumes(tmp_path):
    stop_after(2, cache=tmp_path, device="cuda")
    model, history = fitted(cache=tmp_path, device="cuda")
    assert history["val_accuracy"].max() > 0.9
    assert next(model.parameters()).is_cuda
