"""Which layers are kept together: in memory, with a forward pass per group, or in files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from siutils.features import Job

DISK_RATE = 3e8  # bytes per second, written or read: what an ordinary disk sustains
SHARE = 0.75  # of the memory for features; the rest is for the forward pass and the search


@dataclass(frozen=True)
class Step:
    """Layers whose features come from one forward pass."""

    jobs: Sequence[Job]
    files: bool = False  # in files, not in memory
    keep: bool = False  # the files outlast the step
    room: int = 0  # bytes of disk that it takes


def is_large(size: int, copies: int, memory: float) -> bool:
    """Whether features of `size` bytes and their float64 copies exceed their share of the memory.

    >>> is_large(100, 1, 300), is_large(100, 1, 500)
    (True, False)
    """
    return size * (1 + 2 * copies) > SHARE * memory


def plan_steps(
    sizes: Mapping[Job, int],
    memory: float,
    copies: int,
    free: int,
    seconds: Callable[[], float],
    keep: bool = False,
    present: Collection[Job] = (),
) -> list[Step]:
    """Groups of layers that fit the memory, and the fewest forward passes that are cheap.

    Layers that fit the memory only in several groups need a forward pass per group. Files need one
    pass in all, and are written and read: they are taken where that is faster and the disk has
    room. A layer that is too large for the memory on its own always goes through files, as does its
    float64 copy.

    Args:
        sizes: bytes of the float32 features of each job.
        memory: bytes in all; three quarters of them are for features.
        copies: 1 if features are copied to float64 in this memory to be scored, else 0.
        free: bytes of disk.
        seconds: of one forward pass over all images; called only where it matters.
        keep: keep what fits the memory at once in files as well, if the disk has room.
        present: jobs that have their files already.

    >>> sizes = {("a", None): 60, ("b", None): 60, ("c", None): 900}
    >>> steps = plan_steps(sizes, 100, 0, 1000, lambda: 0.0)
    >>> [("".join(layer for layer, _ in step.jobs), step.files) for step in steps]
    [('a', False), ('b', False), ('c', True)]
    """
    large = {job: size for job, size in sizes.items() if is_large(size, copies, memory)}
    ready = [job for job in sizes if job in present and job not in large]
    small = {job: size for job, size in sizes.items() if job not in large and job not in ready}
    steps = [Step(ready, files=True, keep=True)] if ready else []
    groups = _groups(small, copies, SHARE * memory)
    total = sum(small.values())
    if len(groups) == 1 and keep and total <= free:
        steps.append(Step(groups[0], files=True, keep=True, room=total))
        free -= total
    elif (
        len(groups) > 1 and total <= free and 2 * total / DISK_RATE < (len(groups) - 1) * seconds()
    ):
        steps.append(Step(list(small), files=True, room=total))
    else:
        steps += [Step(group) for group in groups]
    for group in _groups(large, copies, free):
        missing = sum(large[job] for job in group if job not in present)
        room = missing + 2 * copies * max(large[job] for job in group)
        steps.append(Step(group, files=True, room=room))
    return steps


def room_needed(steps: Sequence[Step]) -> int:
    """The most bytes that lie on the disk at once.

    >>> room_needed([Step([], keep=True, room=5), Step([], room=3), Step([], room=2)])
    8
    """
    most = kept = 0
    for step in steps:
        most = max(most, kept + step.room)
        kept += step.room * step.keep
    return most


def _groups(sizes: Mapping[Job, int], copies: int, limit: float) -> list[list[Job]]:
    """Neighboring jobs that fit together with the float64 copy of the largest."""
    groups: list[list[Job]] = []
    for job in sizes:
        together = [*groups[-1], job] if groups else [job]
        sides = [sizes[j] for j in together]
        if groups and sum(sides) + 2 * copies * max(sides) <= limit:
            groups[-1] = together
        else:
            groups.append([job])
    return groups
