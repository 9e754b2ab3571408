"""Fit, evaluate, checkpoints: learning, exact resume, files and errors."""

import dataclasses
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from siutils import training, training_files
from siutils.augmentation import augment, cutmix, trivial_augment
from siutils.checkpoints import fingerprint, load_checkpoint, replacing, save_checkpoint
from siutils.data import ImageSet, Transform, load_dataset, train_val_split, transform_for
from siutils.models import create_model
from siutils.recipes import learning_rate
from siutils.training import (
    Recipe,
    evaluate,
    fit,
    get_recipe,
    inference,
)

CPU = torch.device("cpu")
HALF = Transform((0.5,) * 3, (0.5,) * 3)
QUICK = Recipe("quick", epochs=4, batch_size=16, lr=0.05, crop_padding=1, rotation=10, bn_images=24)
MODERN = get_recipe("modern", epochs=4, batch_size=16, lr=0.05, crop_padding=1)

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


def no_dropout():
    net = small_net()
    return nn.Sequential(*net[:4], net[5])


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


# The modern recipe


def test_an_epoch_of_the_modern_recipe_is_that_of_its_definition():
    """A plain loop with the formulas written out; the augmentation has tests of its own."""
    recipe = dataclasses.replace(MODERN, epochs=1, average=0.5)
    train, model, oracle = stripes(80), no_dropout(), no_dropout()
    generator = torch.Generator().manual_seed(7 * 1_000_003)
    order = torch.randperm(80, generator=generator)
    images = trivial_augment(train.images, generator)
    average = {name: value.clone() for name, value in oracle.state_dict().items()}
    speed = {name: torch.zeros_like(p) for name, p in oracle.named_parameters()}
    cosine = [(1 + math.cos(math.pi * done / 4.5)) / 2 for done in (0.5, 1.5, 2.5, 3.5)]
    rates, losses, correct = [0.05 / 1.5, *(0.05 * factor for factor in cosine)], [], 0
    for step, rows in enumerate(order.split(16)):
        mixed, share = cutmix(augment(images[rows], recipe, generator), 0.5, generator)
        logits = oracle(HALF(mixed))
        own = nn.functional.one_hot(train.labels[rows], 3)
        target = share[:, None] * own + (1 - share[:, None]) * own.roll(1, 0)
        correct += int((logits.argmax(1) == target.argmax(1)).sum())
        loss = -((0.9 * target + 0.1 / 3) * logits.log_softmax(1)).sum(1).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, oracle.parameters())
        with torch.no_grad():
            for (name, p), slope in zip(oracle.named_parameters(), gradients, strict=True):
                slope = slope + 1e-3 * p * (p.ndim > 1)
                speed[name] = 0.9 * speed[name] + slope
                p -= rates[step] * (slope + 0.9 * speed[name])
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in oracle.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    val = stripes(9, seed=1)
    history = fit(model, train, val, recipe, transform=HALF, device="cpu", seed=7)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, average[name], atol=1e-5), name
    assert history["train_loss"].item() == pytest.approx(sum(losses) / 5, rel=1e-4)
    assert history["train_accuracy"].item() == correct / 80
    assert history["lr"].item() == pytest.approx(sum(rates) / 5)
    assert history["val_loss"].item() == evaluate(model, val, device="cpu")["loss"]


def test_batches_and_weights_are_channels_last():
    seen, model = [], no_dropout()
    model.register_forward_pre_hook(lambda m, x: seen.append(x[0]) if m.training else None)
    fit(model, stripes(32), stripes(9), MODERN, transform=HALF, epochs=1, device="cpu")
    for tensor in (*seen, model[0].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_learns_with_float32_weights(monkeypatch):
    """As on CUDA; bfloat16 works on a CPU, only slowly."""
    exact, _ = fitted()
    monkeypatch.setattr(training, "_in_bfloat16", lambda device: True)
    dtypes, model = [], small_net()
    model[0].register_forward_hook(lambda m, x, out: dtypes.append((m.training, out.dtype)))
    history = fit(model, stripes(49), stripes(30, seed=1), QUICK, transform=HALF, device="cpu")
    assert history["val_accuracy"].max() > 0.9
    assert (True, torch.bfloat16) in dtypes
    assert (False, torch.bfloat16) not in dtypes
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not same_weights(exact, model)


# Resume


RESUMED = {
    "sgd": dataclasses.replace(QUICK, lr=0.01),
    "adamw": dataclasses.replace(QUICK, lr=0.01, optimizer="adamw"),
    "modern": MODERN,
}


@pytest.mark.parametrize("recipe", RESUMED.values(), ids=RESUMED.keys())
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_run_resumes_exactly(tmp_path, epoch, recipe):
    straight, expected = fitted(recipe)
    with pytest.raises(Stop):
        fitted(recipe, tmp_path, progress=stop_after(epoch))
    lines = []
    resumed, history = fitted(recipe, tmp_path, progress=lines.append)
    assert 4 - epoch <= len(lines) < 4  # more where writing was slow
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
    epoch = max(history["epoch"][history["val_accuracy"] == history["val_accuracy"].max()])
    assert files == [f"best{epoch}.pt", "history.csv", "last.pt", "meta.json"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    best = load_checkpoint(folder / f"best{epoch}.pt", ("model",), CPU)
    assert best["val_accuracy"] == history["val_accuracy"].max()


def test_the_best_epoch_is_one_of_the_history_that_is_gone_on_from(tmp_path):
    """A better one of a later epoch, whose last.pt was not written any more, does not count."""
    with pytest.raises(Stop):
        fitted(cache=tmp_path, progress=stop_after(2))
    folder = run_folder(tmp_path)
    [best] = folder.glob("best*.pt")
    ahead = torch.load(best, weights_only=True) | {"epoch": 3, "val_accuracy": 2.0}
    torch.save(ahead, folder / "best3.pt")
    model, history = fitted(cache=tmp_path)
    assert same_weights(model, fitted()[0])
    assert history["val_accuracy"].max() <= 1
    assert len(list(folder.glob("best*.pt"))) == 1


def test_snapshots_hold_the_weights_after_their_epochs(tmp_path):
    model, history = fitted(recipe=QUICK)
    for cache in (None, tmp_path, tmp_path):  # the last one is loaded
        snapshots = {2: {}, 4: {}}
        same, again = fitted(cache=cache, snapshots=snapshots)
        assert same_weights(model, same)
        assert_same_history(history, again)
        for epoch, weights in snapshots.items():
            copy = small_net()
            copy.load_state_dict(weights)
            copy.transform = HALF
            accuracy = evaluate(copy, stripes(30, seed=1), device="cpu")["accuracy"]
            assert accuracy == history["val_accuracy"][epoch - 1]
    assert not torch.equal(snapshots[2]["0.weight"], snapshots[4]["0.weight"])
    stopped = {2: {}, 4: {}}
    with pytest.raises(Stop):
        fitted(cache=tmp_path / "stopped", snapshots=stopped, progress=stop_after(3))
    assert (len(stopped[2]), len(stopped[4])) == (len(snapshots[2]), 0)
    resumed = {2: {}, 4: {}}
    fitted(cache=tmp_path / "stopped", snapshots=resumed)
    for epoch in (2, 4):
        assert all(torch.equal(resumed[epoch][k], v) for k, v in snapshots[epoch].items())
    with pytest.raises(ValueError, match="keys from 1 to 4, got 5"):
        fitted(snapshots={5: {}})


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


def test_where_writing_is_slow_only_some_epochs_are_stored(tmp_path, monkeypatch):
    def slowly(content, path):
        time.sleep(0.1)
        save_checkpoint(content, path)

    monkeypatch.setattr(training_files, "save_checkpoint", slowly)
    with pytest.raises(Stop):
        fitted(MODERN, tmp_path, progress=stop_after(3))
    assert len(load_checkpoint(run_folder(tmp_path) / "last.pt", ("history",), CPU)["history"]) == 1
    resumed, history = fitted(MODERN, tmp_path)
    assert len(load_checkpoint(run_folder(tmp_path) / "last.pt", ("history",), CPU)["history"]) == 4
    straight, expected = fitted(MODERN)
    assert same_weights(straight, resumed)
    assert_same_history(history, expected)


@pytest.mark.parametrize("name", ["QUICK", "MODERN"])
def test_a_run_killed_at_any_moment_finishes_with_the_same_weights(tmp_path, name):
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_training import *
        torch.set_num_threads(1)
        print("ready", flush=True)
        fitted(dataclasses.replace({name}, epochs=40), Path({str(tmp_path)!r}),
               progress=lambda line: print(line, flush=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 5/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = []
    recipe = dataclasses.replace(globals()[name], epochs=40)
    resumed, _ = fitted(recipe, tmp_path, progress=lines.append)
    assert 0 < len(lines) < 40
    assert same_weights(resumed, fitted(recipe)[0])


# Damaged files, full disks, wrong inputs


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("name", ["last.pt", "best*.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "malicious", "missing key"])
def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch, name, damage):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        fitted(cache=tmp_path, progress=stop_after(2))
    [path] = run_folder(tmp_path).glob(name)
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
