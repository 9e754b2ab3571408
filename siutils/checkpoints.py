"""Files that survive a kill: content keys, atomic writes, checkpoints that hold data, not code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(*parts: object) -> str:
    """SHA-256 over tensors, mappings, files (as `Path`) and the `repr` of anything else.

    Example:
        >>> a = fingerprint({"w": torch.zeros(2)}, 1)
        >>> a == fingerprint({"w": torch.zeros(2)}, 1), a == fingerprint({"w": torch.zeros(2)}, 2)
        (True, False)
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest: Any, part: object) -> None:
    if isinstance(part, Tensor):
        digest.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)};".encode())
        for key, value in part.items():
            _feed(digest, key)
            _feed(digest, value)
    elif isinstance(part, tuple):
        digest.update(f"tuple {len(part)};".encode())
        for value in part:
            _feed(digest, value)
    else:
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)};".encode() + content)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of a plain dictionary, for models that ask for the version of a module.

    torchvision's MNASNet is one; the version stands in an attribute that copies have lost.

    >>> model = nn.Linear(1, 1)
    >>> load_weights(model, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    >>> model(torch.tensor([3.0])).item()
    3.0
    """
    state = OrderedDict(weights)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def package_of(model: nn.Module) -> tuple[str, str]:
    """Name and version of the package that the code of a model comes from.

    >>> package_of(nn.Linear(1, 1)) == ("torch", torch.__version__)
    True
    """
    name = type(model).__module__.partition(".")[0]
    return name, str(getattr(sys.modules.get(name), "__version__", ""))


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
            f"cannot write {path}: {reason}. Free some space there or choose another cache folder"
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


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values to `path`, at once or not at all.

    Raises:
        CannotWrite: see `replacing`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint({"epoch": 3}, Path(folder) / "last.pt")
    ...     load_checkpoint(Path(folder) / "last.pt", ("epoch",), torch.device("cpu"))
    {'epoch': 3}
    """
    with replacing(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # how PyTorch's archive writer reports a full disk
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path, keys: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`: a file that would run code is refused.

    Raises:
        RuntimeError: the file is damaged, refused, or lacks one of the keys.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint({"weights": torch.ones(2)}, Path(folder) / "best.pt")
    ...     load_checkpoint(Path(folder) / "best.pt", ("weights",), torch.device("cpu"))
    {'weights': tensor([1., 1.])}
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        missing = [key for key in keys if key not in content]
        if missing:
            raise KeyError(f"it lacks {', '.join(missing)}")
    except Exception as error:  # pickle, zip and torch errors, one for each kind of damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"cannot load the checkpoint {path}: {reason} Delete the folder {path.parent} to train "
            "again from the start"
        ) from error
    return content
