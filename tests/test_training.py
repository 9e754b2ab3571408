"""Recipes, augmentation, fit, evaluate, checkpoints: learning, exact resume, files and errors."""

import dataclasses
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import nn

from siutils.checkpoints import fingerprint, load_checkpoint, replacing, save_checkpoint
from siutils.data import ImageSet, Transform, load_dataset, train_val_split, transform_for
from siutils.models import create_model
from siutils.training import (
    RECIPES,
    Recipe,
    augment,
    evaluate,
    fit,
    get_recipe,
    inference,
    learning_rate,
)

CPU = torch.device("cpu")
HALF = Transform((0.5,) * 3, (0.5,) * 3)
QUICK = Recipe("quick", epochs=4, batch_size=16, lr=0.05, crop_padding=1, rotation=10, bn_images=24)


pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(n, classes=3, seed=0):
    """Images whose class is the row that is bright, so that a small network learns them at once."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 60, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(n), :, 2 * labels + 1] += 150
    return ImageSet("stripes", images, labels, tuple("abcdefgh"[:classes]), "")


def small_net(classes=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8 * 64, classes),
        )


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_history(a, b):
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"))


def fitted(recipe=QUICK, cache=None, seed=0, train=None, val=None, **options):
    model = small_net()
    options = {"transform": HALF, "device": "cpu", "cache": cache, "seed": seed} | options
    history = fit(model, train or stripes(49), val or stripes(30, seed=1), recipe, **options)
    return model, history


class Stop(Exception):
    pass


def stop_after(epoch):
    def progress(line):
        if line.startswith(f"epoch {epoch}/"):
            raise Stop

    return progress


def run_folder(cache):
    (folder,) = (cache / "training").iterdir()
    return folder


# Recipes and schedules


def test_the_studys_recipe_is_the_one_in_the_reference():
    study, efficientnet = RECIPES["study"], RECIPES["study_efficientnet"]
    facts = (study.batch_size, study.epochs, study.lr, study.momentum, study.weight_decay)
    assert facts == (128, 200, 0.1, 0.9, 5e-4)
    assert (study.optimizer, study.nesterov, study.label_smoothing) == ("sgd", False, 0.0)
    assert (study.crop_padding, study.flip, study.rotation, study.bn_images) == (4, True, 15, 0)
    by_epoch = [learning_rate(study, 313 * epoch + 312, 313, 200) for epoch in range(200)]
    expected = [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
    assert by_epoch == pytest.approx(expected)
    first = [learning_rate(study, step, 313, 200) for step in range(313)]
    assert first == pytest.approx([0.1 * (step + 1) / 313 for step in range(313)])
    assert (efficientnet.warmup_epochs, efficientnet.rotation) == (0, 0)
    assert learning_rate(efficientnet, 0, 313, 200) == 0.1


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 7), (3, 5), (30, 40)])
def test_one_cycle_rises_to_the_peak_and_falls_to_almost_zero(epochs, steps):
    recipe = get_recipe("one_cycle", lr=0.4)
    rates = [learning_rate(recipe, step, steps, epochs) for step in range(epochs * steps)]
    assert all(0 < rate <= 0.4 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if epochs * steps > 10:
        assert max(rates) > 0.38
        assert rates[-1] < 0.04


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "cosine"}, "schedule"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"lr": math.nan}, "lr"),
        ({"crop_padding": -1}, "crop_padding"),
        ({"bogus": 1}, "bogus"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(changes, words):
    with pytest.raises(ValueError, match=words):
        get_recipe("study", **changes)
    with pytest.raises(ValueError, match=r"unknown recipe 'studi'.*study, study_eff.*one_cycle"):
        fit(small_net(), stripes(9), stripes(9), "studi", transform=HALF)


# Augmentation


def test_rotation_equals_torchvisions():
    images = torch.randint(0, 256, (32, 3, 9, 12), dtype=torch.uint8)
    recipe = get_recipe("study", crop_padding=0, flip=False, rotation=40)
    rotated = augment(images, recipe, torch.Generator().manual_seed(3))
    angles = (2 * torch.rand(32, 4, generator=torch.Generator().manual_seed(3))[:, 0] - 1) * 40
    expected = [TF.rotate(x, float(a)) for x, a in zip(images, angles, strict=True)]
    assert (rotated == torch.stack(expected)).double().mean() > 0.999  # ties of the nearest pixel


def test_crop_and_flip_are_shifts_and_mirrors_of_the_padded_image():
    images = torch.randint(1, 256, (200, 3, 6, 5), dtype=torch.uint8)
    before = images.clone()
    recipe = get_recipe("study", crop_padding=2, rotation=0)
    result = augment(images, recipe, torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    crops = {(dy, dx): padded[:, :, dy : dy + 6, dx : dx + 5] for dy in range(5) for dx in range(5)}
    seen = set()
    for i in range(200):
        found = [(shift, False) for shift, c in crops.items() if torch.equal(c[i], result[i])]
        found += [
            (shift, True) for shift, c in crops.items() if torch.equal(c[i].flip(2), result[i])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 40  # of 50 possible


def test_without_augmentation_images_stay_and_flip_can_be_switched_off():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    off = get_recipe("one_cycle", crop_padding=0, flip=False)
    assert torch.equal(augment(images, off, generator), images)
    on = augment(images, dataclasses.replace(off, flip=True), generator)
    mirrored = [torch.equal(on[i], images[i].flip(2)) for i in range(50)]
    assert 10 < sum(mirrored) < 40


# Training


def test_fit_learns_and_ends_with_the_best_weights_in_eval_mode():
    lines = []
    model, history = fitted(progress=lines.append)
    assert list(history.columns) == [
        *("epoch", "lr", "train_loss", "train_accuracy"),
        *("val_loss", "val_accuracy", "seconds"),
    ]
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
    _, history = fitted(dataclasses.replace(QUICK, schedule="one_cycle"))
    recipe = dataclasses.replace(QUICK, schedule="one_cycle")
    rates = torch.tensor([learning_rate(recipe, step, 3, 4) for step in range(12)])
    assert history["lr"].tolist() == pytest.approx(rates.reshape(4, 3).mean(1).tolist())


def test_each_epoch_has_its_own_order_of_images():
    seen, model, still = [], small_net(), dataclasses.replace(QUICK, crop_padding=0, rotation=0)
    model.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone()) if m.training else None)
    recipe = dataclasses.replace(still, batch_size=48, epochs=2, flip=False, bn_images=0)
    fit(model, stripes(48), stripes(9), recipe, transform=HALF, device="cpu")
    first, second = seen
    assert not torch.equal(first, second)
    in_order = [batch.sum((1, 2, 3)).sort().values for batch in seen]
    assert torch.allclose(*in_order)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_labels_decide_what_is_learned(optimizer):
    recipe = dataclasses.replace(
        QUICK, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01, label_smoothing=0.1
    )
    model, _ = fitted(recipe)
    swapped = dataclasses.replace(stripes(30, seed=1), labels=2 - stripes(30).labels)
    assert evaluate(model, swapped, device="cpu")["accuracy"] < 0.5


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
    model, history = fitted()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, history_again = fitted()
    assert same_weights(model, again)
    assert_same_history(history, history_again)
    other, _ = fitted(seed=1)
    assert not same_weights(model, other)


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


# Resume


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_run_resumes_exactly(tmp_path, epoch, optimizer):
    recipe = dataclasses.replace(QUICK, optimizer=optimizer, lr=0.01)
    straight, expected = fitted(recipe)
    with pytest.raises(Stop):
        fitted(recipe, tmp_path, progress=stop_after(epoch))
    lines = []
    resumed, history = fitted(recipe, tmp_path, progress=lines.append)
    assert len(lines) == 4 - epoch
    assert same_weights(straight, resumed)
    assert_same_history(history, expected)


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path):
    model, history = fitted(cache=tmp_path)
    lines = []
    again, loaded = fitted(cache=tmp_path, progress=lines.append)
    assert lines == []
    assert same_weights(model, again)
    assert not again.training
    pd.testing.assert_frame_equal(history, loaded)
    folder = run_folder(tmp_path)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["best.pt", "history.csv", "last.pt", "meta.json"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    best = load_checkpoint(folder / "best.pt", ("model",), CPU)
    assert best["val_accuracy"] == history["val_accuracy"].max()


def test_whatever_changes_the_result_is_another_run(tmp_path):
    train, val = stripes(49), stripes(30, seed=1)
    other_image = train.images.clone()
    other_image[3, 0, 0, 0] ^= 1
    other_labels = val.labels.clone()
    other_labels[0] = 1
    variants = [
        {},
        {"seed": 1},
        {"epochs": 1},
        {"recipe": dataclasses.replace(QUICK, lr=0.04)},
        {"transform": Transform((0.4,) * 3, (0.5,) * 3)},
        {"train": dataclasses.replace(train, images=other_image)},
        {"val": dataclasses.replace(val, labels=other_labels)},
    ]
    for number, options in enumerate(variants, start=1):
        fitted(**{"cache": tmp_path, "train": train, "val": val} | options)
        assert len(list((tmp_path / "training").iterdir())) == number
    model = small_net(seed=1)
    fit(model, train, val, QUICK, transform=HALF, device="cpu", cache=tmp_path)
    assert len(list((tmp_path / "training").iterdir())) == len(variants) + 1


def test_a_run_killed_at_any_moment_finishes_with_the_same_weights(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_training import *
        torch.set_num_threads(1)
        print("ready", flush=True)
        fitted(dataclasses.replace(QUICK, epochs=40), Path({str(tmp_path)!r}),
               progress=lambda line: print(line, flush=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 5/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = []
    recipe = dataclasses.replace(QUICK, epochs=40)
    resumed, _ = fitted(recipe, tmp_path, progress=lines.append)
    assert 0 < len(lines) <= 35
    assert same_weights(resumed, fitted(recipe)[0])


# Damaged files, full disks, wrong inputs


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "malicious", "missing key"])
def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch, name, damage):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        fitted(cache=tmp_path, progress=stop_after(2))
    path = run_folder(tmp_path) / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "malicious":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(RuntimeError) as error:
        fitted(cache=tmp_path)
    assert str(path) in str(error.value)
    assert f"Delete the folder {path.parent}" in str(error.value)
    assert not Path("pwned").exists()


@contextmanager
def largest_file(size):
    """Writing more than `size` bytes to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_error_and_the_old_checkpoint_is_intact(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"w": torch.ones(3)}, path)
    with largest_file(20_000), pytest.raises(OSError, match=r"cannot write .*last\.pt: .*space"):
        save_checkpoint({"w": torch.zeros(100_000)}, path)
    assert torch.equal(load_checkpoint(path, ("w",), CPU)["w"], torch.ones(3))
    failure = pytest.raises(OSError, match=r"cannot write .*notes: .*space")
    with largest_file(20_000), failure, replacing(tmp_path / "notes") as temporary:
        temporary.write_bytes(bytes(100_000))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_cache_that_is_no_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*meta\.json"):
        fitted(cache=tmp_path / "file")


def test_what_a_killed_run_left_is_removed_later(tmp_path):
    old, young = tmp_path / "last.pt.1.tmp", tmp_path / "last.pt.2.tmp"
    old.write_text("")
    young.write_text("")
    os.utime(old, (0, 0))
    save_checkpoint({}, tmp_path / "last.pt")
    assert not old.exists()
    assert young.exists()


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(RuntimeError, match=r"loss is (nan|inf) in epoch \d at a learning rate of"):
        fitted(dataclasses.replace(QUICK, lr=1e30))


def test_labels_without_an_output_are_refused():
    with pytest.raises(ValueError, match=r"labels of train run from 0 to 3.*3 outputs"):
        fitted(train=stripes(20, classes=4))
    with pytest.raises(ValueError, match=r"labels of val run from 0 to 3.*3 outputs"):
        fitted(val=stripes(20, classes=4))
    model = small_net()
    model.transform = HALF
    with pytest.raises(ValueError, match=r"labels of data run from 0 to 3.*3 outputs"):
        evaluate(model, stripes(20, classes=4), device="cpu")


def test_batches_of_one_image_and_models_without_transform_are_refused():
    with pytest.raises(ValueError, match=r"BatchNorm.*batch_size=1"):
        fitted(dataclasses.replace(QUICK, batch_size=1))
    with pytest.raises(ValueError, match=r"BatchNorm.*1 training images"):
        fitted(train=stripes(1))
    with pytest.raises(ValueError, match=r"model\.transform is not set"):
        evaluate(small_net(), stripes(9), device="cpu")


def test_a_last_batch_of_one_image_is_left_out_only_because_of_batchnorm():
    seen = []
    model = small_net()
    model.register_forward_pre_hook(lambda m, x: seen.append(len(x[0])) if m.training else None)
    fit(model, stripes(33), stripes(9), QUICK, transform=HALF, epochs=1, device="cpu")
    assert seen == [16, 16]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    seen.clear()
    model.register_forward_pre_hook(lambda m, x: seen.append(len(x[0])) if m.training else None)
    fit(model, stripes(33), stripes(9), QUICK, transform=HALF, epochs=1, device="cpu")
    assert seen == [16, 16, 1]


# Keys and devices


def test_fingerprint_tells_apart_what_differs(tmp_path):
    file = tmp_path / "a"
    file.write_text("x")
    things = [
        (torch.zeros(4),),
        (torch.zeros(2, 2),),
        (torch.zeros(4, dtype=torch.int32),),
        (torch.zeros(2), torch.zeros(2)),
        ({"a": torch.zeros(4)},),
        ({"b": torch.zeros(4)},),
        ("ab", "c"),
        ("a", "bc"),
        (("a", "bc"),),
        (1,),
        ("1",),
        (file,),
        (str(file),),
    ]
    assert len({fingerprint(*thing) for thing in things}) == len(things)
    channels_last = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert fingerprint(channels_last) == fingerprint(channels_last.contiguous())


def test_inference_restores_modes_also_after_an_error():
    model = small_net().train()
    model[4].eval()

    def failing():
        with inference(model, CPU):
            assert not any(m.training for m in model.modules())
            raise Stop

    with pytest.raises(Stop):
        failing()
    assert [m.training for m in model] == [True, True, True, True, False, True]


@pytest.mark.cuda
def test_training_on_cuda_learns_and_resumes(tmp_path):
    with pytest.raises(Stop):
        fitted(cache=tmp_path, device="cuda", progress=stop_after(2))
    model, history = fitted(cache=tmp_path, device="cuda")
    assert history["val_accuracy"].max() > 0.9
    assert next(model.parameters()).is_cuda


def test_a_real_network_learns_real_digits():
    digits = load_dataset("digits", image_size=16).of_classes([0, 1])
    train_rows, val_rows = train_val_split(digits.labels, 0.2, seed=0)
    recipe = get_recipe("one_cycle", epochs=2, batch_size=16, lr=0.02, flip=False, crop_padding=1)
    model = create_model("resnet18", num_classes=2, seed=0)
    train, val = digits.subset(train_rows[::4]), digits.subset(val_rows)
    history = fit(model, train, val, recipe, transform=transform_for("digits"), device="cpu")
    assert history["val_accuracy"].iloc[-1] > 0.9
