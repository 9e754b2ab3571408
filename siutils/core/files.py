"""Where files lie, and how they are written: whole or not at all, so that a kill loses nothing."""

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
    given = os.environ.get("SIUTILS_DATA")
    return Path(given).expanduser() if given else home_dir() / "data"


def cache_dir() -> Path:
    """Folder of checkpoints and features: ``$SIUTILS_CACHE``, else ``data/cache`` in `home_dir`.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, SIUTILS_CACHE="/scratch"):
    ...     print(cache_dir())
    /scratch
    """
    given = os.environ.get("SIUTILS_CACHE")
    return Path(given).expanduser() if given else home_dir() / "data" / "cache"


class CannotWrite(OSError):
    """A file could not be written; what was there before is intact."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` on success and is deleted on failure.

    Raises:
        CannotWrite: full disk, read-only folder, …; `path` is as it was.

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
        raise  # of another file, whose name it has
    except OSError as error:
        reason = error.strerror or error
        raise CannotWrite(
            f"cannot write {path}: {reason}. Free some space there or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed runs left in a folder, if there is one.

    >>> remove_leftovers(Path("nowhere"))
    """
    for file in folder.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            if _is_left(file):
                file.unlink()


def _is_left(file: Path) -> bool:
    """Whether its process is no more; of another machine: whether it has long written nothing."""
    name, _, pid = file.name.removesuffix(".tmp").rpartition(".")
    age = time.time() - file.stat().st_mtime
    if os.name != "posix" or not name.endswith(f".{platform.node()}"):
        return age > 600
    if age > 86_400:  # its number may be another process's by now
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):  # somebody else's process, not our name
        pass
    return False


def write_file(path: Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes to `path`, at once or not at all.

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
