"""The folder of a report: one complete run, or none.

A run works in ``<target>.unfinished`` beside its target and holds a lock on that folder. When it is
complete, ``run.json`` lists its files with their checksums, and the folder takes the target's
place in whole. An unfinished folder stays; the same run, repeated, goes on there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siutils.core import CannotWrite, cache_dir, remove_leftovers, write_file
from siutils.report.execution import IncompleteError, OutputError


def target_folder(output: str | Path) -> Path:
    """Resolves the folder of a report and refuses one that a run could not replace in whole.

    Raises:
        OutputError: the path cannot be used, or the folder holds files that are of no report.
    """
    try:
        target = Path(output).expanduser().resolve()
        str(target).encode()
    except (OSError, RuntimeError, UnicodeEncodeError) as error:  # no such user, looping links
        raise OutputError(f"output: {str(output)!r} cannot be used: {error}") from None
    if target == Path.cwd() or target.is_mount():
        raise OutputError(
            f"output: {target} cannot be replaced in whole, as it is the working folder or the "
            f"root of a disk; choose a folder in it, such as {target / 'report'}"
        )
    _check_replaceable(target)
    return target


@contextmanager
def unfinished(
    target: Path, key: str, about: Mapping[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Locks the working folder of a run; yields it and its ``run.json``, of the same run if it can.

    Args:
        target: Folder of the complete report.
        key: What determines the run; a folder that a run with another key left is emptied.
        about: What ``run.json`` says of the unfinished run.

    Raises:
        OutputError: Another run works there, or the folder is of no run.
    """
    work = target.with_name(f"{target.name}.unfinished")
    lock = _lock(work)
    try:
        if _replaced(target).exists() and not target.exists():
            _replaced(target).rename(target)  # a run was killed between two renames
        left = read_run(work)
        if not left and files_in(work):
            raise OutputError(f"output: {work} is in the way and of no run; move it")
        if left.get("key") != key:
            _empty(work)
            started = datetime.now(UTC)
            number = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
            left = {"run": number, "started": started.isoformat(timespec="seconds")}
        holder = {"process": os.getpid(), "host": platform.node()}
        run = {**left, "state": "unfinished", "key": key, **about, **holder}
        save_run(work, run)
        yield work, run
    finally:
        for place in (work, cache_dir()):  # where a kernel that was killed left half a file
            for folder in {file.parent for file in place.rglob("*.tmp")}:
                remove_leftovers(folder)
        if _is_at(lock, work) and not files_in(work):
            shutil.rmtree(work)  # nothing was done
        os.close(lock)


def publish(work: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Completes ``run.json`` and puts the working folder in the target's place."""
    _check_replaceable(target)
    for rest in [*work.rglob("*.tmp"), *work.rglob("*.partial.ipynb")]:
        rest.unlink()  # of a killed attempt
    files = {name: _checksum(work / name) for name in sorted(files_in(work))}
    save_run(work, {**facts, "state": "complete", "files": files})
    shutil.rmtree(_replaced(target), ignore_errors=True)
    if target.exists():
        target.rename(_replaced(target))
    work.rename(target)
    shutil.rmtree(_replaced(target), ignore_errors=True)


def check_report(folder: str | Path) -> dict[str, Any]:
    """Verifies that a folder is one complete run, each page, table and figure of it; returns it.

    Raises:
        IncompleteError: Naming the first file that is missing or not of this run.
    """
    folder = Path(folder)
    run = read_run(folder)
    if run.get("state") != "complete":
        state = "an unfinished run" if run else "no run.json"
        raise IncompleteError(f"{folder}: no complete report; it holds {state}")
    recorded, found = run["files"], files_in(folder)
    for name in sorted(found | recorded.keys()):
        if name not in found:
            raise IncompleteError(f"{folder}: {name} of run {run['run']} is missing")
        if _checksum(folder / name) != recorded.get(name):
            raise IncompleteError(f"{folder}: {name} is not as run {run['run']} wrote it")
        content = (folder / name).read_bytes() if name.endswith(".html") else run["run"].encode()
        if run["run"].encode() not in content:
            raise IncompleteError(f"{folder}: the page {name} does not name run {run['run']}")
    return run


@contextmanager
def output_errors(folder: Path, what: str = "output") -> Iterator[None]:
    """Turns errors of files into an `OutputError` that says what cannot be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CannotWrite):
            raise OutputError(f"{what}: {error}") from error
        reason = error.strerror or str(error)
        raise OutputError(f"{what}: cannot write {error.filename or folder}: {reason}") from error


def probe(folder: Path) -> None:
    """Creates the folder and writes a few KB, so that a full or read-only disk shows at once."""
    file = folder / f".probe.{os.getpid()}"
    write_file(file, bytes(64 * 1024))
    file.unlink()


def read_run(folder: Path) -> dict[str, Any]:
    """Reads ``run.json``; empty where it is missing or not written by a run of this version."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) and "run" in run else {}


def save_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes ``run.json``."""
    write_file(folder / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")


def files_in(folder: Path) -> set[str]:
    """The files of a folder but ``run.json`` and hidden ones, as JupyterLab makes them."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    hidden = (file for file in files if not any(part.startswith(".") for part in file.parts))
    return {file.as_posix() for file in hidden} - {"run.json"}


def _check_replaceable(target: Path) -> None:
    """Refuses to replace files that no report wrote."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"output: cannot write {target}: it is a file; choose a folder")
    known = read_run(target).get("files", {})
    if strange := sorted(files_in(target) - known.keys()):
        raise OutputError(
            f"output: {target} holds {strange[0]}, which is of no report and would be lost; move "
            "it or choose another folder"
        )


def _lock(work: Path) -> int:
    """Locks the working folder itself: a lock ends with its process, however that ends."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, work):
                return handle
        except BlockingIOError:
            run = read_run(work)
            os.close(handle)
            raise OutputError(
                f"output: the run {run.get('profile')!r}, process {run.get('process')} on "
                f"{run.get('host')}, is writing there ({work}); wait for it or choose another"
            ) from None
        os.close(handle)  # another run has just been completed


def _is_at(handle: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle), path.stat())


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
