"""Groups of layers stay within memory and disk, and files are used only where they are faster."""

import itertools
import math

import pytest
import torch

from siutils.layers.plan import DISK_RATE, SHARE, plan_steps, room_needed


def jobs(seed, n=40):
    generator = torch.Generator().manual_seed(seed)
    sizes = (10 ** (6 * torch.rand(n, generator=generator))).long().tolist()
    return {(str(i), None): size for i, size in enumerate(sizes)}


@pytest.mark.parametrize("copies", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_every_step_stays_within_memory_or_disk_and_every_layer_is_done_once(seed, copies):
    sizes, memory, free = jobs(seed), 500_000, 4_000_000
    steps = plan_steps(sizes, memory, copies, free, lambda: 0.0)
    assert sorted(job for step in steps for job in step.jobs) == sorted(sizes)
    for step in steps:
        need = [sizes[job] for job in step.jobs]
        total = sum(need) + 2 * copies * max(need)
        if step.files:
            assert step.room == total <= free
            assert min(need) * (1 + 2 * copies) > SHARE * memory  # only what memory cannot hold
        else:
            assert total <= SHARE * memory
    inside = [step for step in steps if not step.files]
    for a, b in itertools.pairwise(inside):  # no pass too many
        need = [sizes[job] for job in (*a.jobs, b.jobs[0])]
        assert sum(need) + 2 * copies * max(need) > SHARE * memory


def test_files_are_used_where_they_are_faster_and_fit():
    sizes = {(name, None): 60 for name in "abc"}
    files = 2 * 180 / DISK_RATE  # seconds to write and read all
    for seconds, free, expected in ((files, 999, 1), (files / 3, 999, 3), (files, 179, 3)):
        steps = plan_steps(sizes, 100, 0, free, lambda s=seconds: s)
        assert [step.files for step in steps] == [expected == 1] * expected


def test_one_group_needs_no_estimate_and_is_kept_on_request():
    sizes = {("a", None): 60, ("b", "mean"): 1}
    (step,) = plan_steps(sizes, 100, 0, 0, lambda: math.nan)
    assert (list(step.jobs), step.files) == (list(sizes), False)
    (step,) = plan_steps(sizes, 100, 0, 61, lambda: math.nan, keep=True)
    assert (step.files, step.keep, step.room) == (True, True, 61)
    (step,) = plan_steps(sizes, 100, 0, 60, lambda: math.nan, keep=True)
    assert (step.files, step.keep, step.room) == (False, False, 0)


def test_files_that_are_there_are_used_and_need_no_room():
    sizes = {("a", None): 60, ("b", None): 60, ("c", None): 900}
    steps = plan_steps(sizes, 100, 0, 10, lambda: 0.0, present={("a", None), ("c", None)})
    assert [step.jobs[0][0] for step in steps] == ["a", "b", "c"]
    assert [step.files for step in steps] == [True, False, True]
    assert not any(step.room for step in steps)


def test_files_that_are_kept_count_beside_those_of_later_steps():
    sizes = {(name, None): size for name, size in zip("abcd", (30, 30, 90, 80), strict=True)}
    for free, rooms, needed in ((230, [60, 170], 230), (229, [60, 90, 80], 150)):
        steps = plan_steps(sizes, 100, 0, free, lambda: 0.0, keep=True)
        assert [step.room for step in steps] == rooms
        assert [step.keep for step in steps] == [True] + [False] * (len(rooms) - 1)
        assert room_needed(steps) == needed
