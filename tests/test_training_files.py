"""Checkpoints: exact resume after a stop or a kill, damaged files, full disks, keys of runs."""

import dataclasses
import io
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from full_disk import largest_file
from harmful import Harmful
from training_runs import (
    AVERAGED,
    CPU,
    QUICK,
    assert_same,
    fitted,
    run_folder,
    same_weights,
    small_net,
    stop_after,
    stripes,
)

from siutils.core.checkpoints import load_checkpoint, save_checkpoint
from siutils.core.keys import fingerprint
from siutils.data.images import Transform
from siutils.training import files as training_files
from siutils.training import loop
from siutils.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


RESUMED = {
    "sgd": dataclasses.replace(QUICK, lr=0.01),
    "adamw": dataclasses.replace(QUICK, lr=0.01, optimizer="adamw"),
    "averaged": AVERAGED,
    "seldom": dataclasses.replace(AVERAGED, validate_every=3),
}


@pytest.mark.parametrize("recipe", RESUMED.values(), ids=RESUMED.keys())
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_run_resumes_exactly(tmp_path, epoch, recipe):
    stop_after(epoch, recipe, cache=tmp_path)
    lines = []
    assert_same(fitted(recipe, tmp_path, progress=lines.append), fitted(recipe))
    assert 4 - epoch <= len(lines) < 4  # more where writing was slow


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path):
    model, history = fitted(cache=tmp_path)
    lines = []
    again, loaded = fitted(cache=tmp_path, progress=lines.append)
    assert lines == []
    assert same_weights(model, again)
    assert not again.training
    pd.testing.assert_frame_equal(history, loaded)
    folder = run_folder(tmp_path)
    best = history["epoch"][history["val_accuracy"] == history["val_accuracy"].max()].max()
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"best{best}.pt", "history.csv", "last.pt", "meta.json"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)


def test_the_best_epoch_is_one_of_the_history_that_is_gone_on_from(tmp_path):
    """A better one of a later epoch, whose last.pt was not written any more, does not count."""
    stop_after(2, cache=tmp_path)
    folder = run_folder(tmp_path)
    [best] = folder.glob("best*.pt")
    ahead = torch.load(best, weights_only=True) | {"epoch": 3, "val_accuracy": 2.0}
    torch.save(ahead, folder / "best3.pt")
    model, history = fitted(cache=tmp_path)
    assert same_weights(model, fitted()[0])
    assert history["val_accuracy"].max() <= 1
    assert len(list(folder.glob("best*.pt"))) == 1


def test_snapshots_hold_the_weights_after_their_epochs(tmp_path):
    straight, (model, _) = fitted(), fitted()
    for cache in (None, tmp_path, tmp_path):  # the last one is loaded
        snapshots = {2: {}, 4: {}}
        assert_same(fitted(cache=cache, snapshots=snapshots), straight)
        for epoch, weights in snapshots.items():
            model.load_state_dict(weights)
            accuracy = evaluate(model, stripes(30, seed=1), device="cpu")["accuracy"]
            assert accuracy == straight[1]["val_accuracy"][epoch - 1]
    assert not snapshots[2]["0.weight"].equal(snapshots[4]["0.weight"])
    stopped, resumed = {2: {}, 4: {}}, {2: {}, 4: {}}
    stop_after(3, cache=tmp_path / "stopped", snapshots=stopped)
    assert stopped[2].keys() == snapshots[2].keys()
    assert stopped[4] == {}
    fitted(cache=tmp_path / "stopped", snapshots=resumed)
    for epoch in (2, 4):
        assert all(resumed[epoch][k].equal(value) for k, value in snapshots[epoch].items())
    with pytest.raises(ValueError, match="keys from 1 to 4, got 5"):
        fitted(snapshots={5: {}})


def test_whatever_changes_the_result_is_another_run(tmp_path):
    train, val = stripes(49), stripes(30, seed=1)
    images, labels = train.images.clone(), val.labels.clone()
    images[3, 0, 0, 0] ^= 1
    labels[0] = 1
    variants = [
        {},
        {"seed": 1},
        {"epochs": 1},
        {"recipe": dataclasses.replace(QUICK, lr=0.04)},
        {"transform": Transform((0.4,) * 3, (0.5,) * 3)},
        {"train": dataclasses.replace(train, images=images)},
        {"val": dataclasses.replace(val, labels=labels)},
        {"model": small_net(seed=1)},
    ]
    for number, options in enumerate(variants, start=1):
        fitted(cache=tmp_path, **options)
        assert len(list((tmp_path / "training").iterdir())) == number


def test_where_writing_is_slow_only_some_epochs_are_stored(tmp_path, monkeypatch):
    def slowly(content, path):
        time.sleep(0.1)
        save_checkpoint(content, path)

    def stored():
        path = run_folder(tmp_path) / "last.pt"
        return len(load_checkpoint(path, ("history",), CPU)["history"])

    monkeypatch.setattr(training_files, "save_checkpoint", slowly)
    stop_after(3, AVERAGED, cache=tmp_path)
    assert stored() == 1
    assert_same(fitted(AVERAGED, tmp_path), fitted(AVERAGED))
    assert stored() == 4


@pytest.mark.parametrize("name", ["QUICK", "AVERAGED"])
def test_a_run_killed_at_any_moment_finishes_with_the_same_weights(tmp_path, name):
    script = textwrap.dedent(f"""
        import dataclasses
        import sys
        from pathlib import Path
        import torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from training_runs import *
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


# Finished trainings by other code


def test_a_finished_training_by_other_code_is_taken_if_it_reproduces(tmp_path, monkeypatch):
    night, cache = tmp_path / "night", tmp_path / "cache"
    snapshots = {1: {}}
    expected, history = fitted(cache=night, snapshots=snapshots)
    assert history.attrs["key"] == run_folder(night).name
    assert re.fullmatch(r"unknown|[0-9a-f]{10}( \(modified\))?", history.attrs["commit"])
    monkeypatch.setattr(loop, "code_key", lambda module: "other code")
    lines, again = [], {1: {}}
    same = {"cache": cache, "finished": night, "progress": lines.append}
    model, taken = fitted(snapshots=again, **same)
    assert_same((model, taken), (expected, history))
    assert all(torch.equal(value, snapshots[1][name]) for name, value in again[1].items())
    assert (lines, taken.attrs) == ([], history.attrs)
    for other in ({"seed": 1}, {"snapshots": {2: {}}}, {"train": stripes(48)}):
        fitted(**same | other)  # not these
        assert len(lines) == 4
        lines.clear()
    [best] = run_folder(night).glob("best*.pt")
    torch.save(
        torch.load(best, weights_only=True) | {"model": small_net(seed=9).state_dict()}, best
    )
    with pytest.raises(RuntimeError, match=f"{run_folder(night)} does not reproduce.*recorded"):
        fitted(snapshots={1: {}}, **same)


def test_a_folder_of_finished_trainings_that_is_none_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        fitted(cache=tmp_path, finished=tmp_path / "nowhere")
    (tmp_path / "night").mkdir()
    for content in ("{", "[1]"):
        (tmp_path / "night" / "meta.json").write_text(content)
        with pytest.raises(RuntimeError, match=r"cannot read .*meta\.json"):
            fitted(cache=tmp_path, finished=tmp_path / "night")


def test_an_unfinished_training_by_other_code_is_not_taken(tmp_path, monkeypatch):
    stop_after(2, cache=tmp_path / "night")
    monkeypatch.setattr(loop, "code_key", lambda module: "other code")
    lines = []
    fitted(cache=tmp_path / "cache", finished=tmp_path / "night", progress=lines.append)
    assert len(lines) == 4


# Damaged files, full disks, wrong inputs


@pytest.mark.parametrize("name", ["last.pt", "best*.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "malicious", "missing key"])
def test_a_damaged_checkpoint_is_refused(tmp_path, name, damage):
    stop_after(2, cache=tmp_path)
    [path] = run_folder(tmp_path).glob(name)
    content, other = path.read_bytes(), io.BytesIO()
    torch.save({"weights": torch.zeros(1)}, other)
    damaged = {
        "truncated": content[:-200],
        "empty": b"",
        "malicious": pickle.dumps(Harmful(tmp_path / "harm"), protocol=2),
        "missing key": other.getvalue(),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(RuntimeError) as error:
        fitted(cache=tmp_path)
    assert str(path) in str(error.value)
    assert f"Delete the folder {path.parent}" in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_a_full_disk_is_one_clear_error_and_the_old_checkpoint_is_intact(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"w": torch.ones(3)}, path)
    with largest_file(20_000), pytest.raises(OSError, match=r"cannot write .*last\.pt: .*space"):
        save_checkpoint({"w": torch.zeros(100_000)}, path)
    assert torch.equal(load_checkpoint(path, ("w",), CPU)["w"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_cache_that_is_no_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*meta\.json"):
        fitted(cache=tmp_path / "file")


def test_what_a_killed_run_left_is_removed_later(tmp_path):
    here, me = platform.node(), os.getpid()
    with subprocess.Popen(["true"]) as process:
        pass
    hours = {  # since it was written; a number of a process is used again after a while
        "a.pt.else.where.1.tmp": 1,
        f"a.pt.{here}.{process.pid}.tmp": 0,
        f"b.pt.{here}.{me}.tmp": 25,
    }
    kept = {"a.pt.elsewhere.2.tmp": 0, f"a.pt.{here}.{me}.tmp": 1, f"{here}.x.tmp": 0}
    for name, age in (hours | kept).items():
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - 3600 * age,) * 2)
    save_checkpoint({}, tmp_path / "last.pt")
    assert {path.name for path in tmp_path.glob("*.tmp")} == kept.keys()


def test_fingerprint_tells_apart_what_differs(tmp_path):
    file = tmp_path / "a"
    file.write_text("x")
    things = [(torch.zeros(4),), (torch.zeros(2, 2),), (torch.zeros(4, dtype=torch.int32),)]
    things += [(torch.zeros(2), torch.zeros(2)), ({"a": torch.zeros(4)},), ({"b": torch.zeros(4)},)]
    things += [("ab", "c"), ("a", "bc"), (("a", "bc"),), (1,), ("1",), (file,), (str(file),)]
    assert len({fingerprint(*thing) for thing in things}) == len(things)
    channels_last = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert fingerprint(channels_last) == fingerprint(channels_last.contiguous())
