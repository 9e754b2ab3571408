"""Folders of data and caches, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home_dir() -> Path:
    """The checkout that holds this package, or ``~/.cache/siutils`` when it is installed.

    >>> home_dir().is_absolute()
    True
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout
    return Path.home() / ".cache" / "siutils"


def data_dir() -> Path:
    """Folder of the data sets: ``$SIUTILS_DATA``, else ``data`` in `home_dir`. May be read-only.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, SIUTILS_DATA="/images"):
    ...     print(data_dir())
    /images
    """
    return Path(os.environ.get("SIUTILS_DATA") or home_dir() / "data").expanduser()


def cache_dir() -> Path:
    """Folder of checkpoints and features: ``$SIUTILS_CACHE``, else ``data/cache`` in `home_dir`.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, SIUTILS_CACHE="/scratch"):
    ...     print(cache_dir())
    /scratch
    """
    return Path(os.environ.get("SIUTILS_CACHE") or home_dir() / "data" / "cache").expanduser()


def trainings_dir() -> Path | None:
    """Folder of finished trainings to be taken: ``$SIUTILS_TRAININGS``, or None.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, SIUTILS_TRAININGS="/night"):
    ...     print(trainings_dir())
    /night
    """
    folder = os.environ.get("SIUTILS_TRAININGS")
    return Path(folder).expanduser() if folder else None


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user typed, with ``~`` expanded.

    Raises:
        ValueError: there is no such home folder.

    >>> user_path("a/b").as_posix()
    'a/b'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None


class CannotWrite(OSError):
    """A file could not be written; the file that it would have replaced is intact."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, which becomes `path` on success and is deleted on failure.

    Raises:
        CannotWrite: full disk, read-only folder, …; `path` is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        yield temporary
        temporary.replace(path)
    except CannotWrite:
        raise  # another file could not be written, and the message names that one
    except OSError as error:
        reason = error.strerror or error
        raise CannotWrite(
            f"cannot write {path}: {reason}. Free some space there or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files that killed runs left in a folder, if the folder exists.

    >>> remove_leftovers(Path("nowhere"))
    """
    for file in folder.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another run deleted it first
            if _is_abandoned(file):
                file.unlink()


def _is_abandoned(file: Path) -> bool:
    """True if the process that wrote the file is dead, as far as this machine can tell.

    A file from another machine counts as abandoned if nothing was written to it for 10 minutes.
    """
    name, _, pid = file.name.removesuffix(".tmp").rpartition(".")
    age = time.time() - file.stat().st_mtime
    if os.name != "posix" or not name.endswith(f".{platform.node()}"):
        return age > 600
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):  # another user's process, or not a name of ours
        pass
    return age > 86_400  # after a day another process may have the number


def write_file(path: Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes to `path`, whole or not at all.

    Raises:
        CannotWrite: see `replacing`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(Path(folder) / "new" / "a.txt", "whole")
    ...     (Path(folder) / "new" / "a.txt").read_text()
    'whole'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
