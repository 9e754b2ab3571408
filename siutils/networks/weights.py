"""Files of weights: read as tensors, never as code, with errors that say what to do."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
import torch.hub
from torch import Tensor, nn

from siutils.core import load_foreign


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws from `seed` inside the block, then restores the CPU generator; None does nothing.

    torch.manual_seed would also reseed CUDA for good, the default generator alone does not.

    >>> with seeded(0):
    ...     torch.rand(1)
    tensor([0.4963])
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(int(seed))
        yield


def from_hub(url: str, load: Callable[..., Any]) -> tuple[Any, Path]:
    """Returns weights and their path in torch.hub's cache; downloads and checks them if absent.

    >>> from_hub("https://host/a.pth", lambda **_: {"w": torch.zeros(2)})[1].name
    'a.pth'
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        content = load(map_location="cpu", progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # network, disk, hash or unpickling, told apart by what is there
        if path.exists():
            raise damaged(path, error) from error
        if "invalid hash" in str(error):
            raise RuntimeError(
                f"weights: the download from {url} is not the published file ({error}); nothing "
                "was kept; try again or from another network"
            ) from error
        raise FileNotFoundError(
            f"weights: {path.name} is not in {path.parent} and could not be fetched ({error}). "
            f"Put the file from {url} there, or set TORCH_HOME to a folder T with "
            f"T/hub/checkpoints/{path.name}"
        ) from error
    return content, path


def read(path: Path) -> Any:
    """Reads a file of weights: tensors and plain values, also NumPy's, but no code.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.zeros(2)}, Path(folder) / "a.pt")
    ...     read(Path(folder) / "a.pt")
    {'w': tensor([0., 0.])}
    """
    beginning = _beginning(path)
    if beginning.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"weights: {path} is a pointer of Git LFS, not the weights: run git lfs pull"
        )
    if beginning.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"weights: {path} is a page of a web site, not the weights: download again"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return load_foreign(path)
    except ImportError:
        raise ValueError(f"weights: {path} needs the package safetensors: pip install it") from None
    except Exception as error:  # unpickling damaged bytes can raise nearly anything
        raise damaged(path, error) from error


class Fitting(NamedTuple):
    """Weights of a file that fit a network, and what to say about them."""

    state: dict[str, Tensor]
    note: str


def fitting(content: Any, model: nn.Module, head: str, name: str, path: Path) -> Fitting:
    """Finds the weights of a network in what a file holds, whatever lies around them.

    They may lie under any keys, with any beginning of their names, as DataParallel, torch.compile,
    Lightning, MoCo or DINO leave them. Of several networks that fit, a teacher or an average goes
    before a student. The last layer, and what the file holds beside the network, are not needed.

    Args:
        content: of the file.
        model: the network.
        head: name of its last layer; empty if it has none.
        name: of the network, for messages.
        path: of the file.

    Returns:
        A state_dict, with the last layer if the file has one that differs in the number of classes
        only; and a note: where the weights lay, and what was left out.

    Raises:
        ValueError: no network in it, or another.

    >>> state = {f"module.{key}": value for key, value in nn.Linear(2, 1).state_dict().items()}
    >>> fitting({"teacher": state}, nn.Linear(2, 1), "", "linear", Path("a.pt")).note
    " under 'teacher', names without 'module.'"
    """
    wanted = model.state_dict()
    cases = [
        (*_rank(part, wanted, where + prefix), where, prefix, part)
        for where, state in _states(content)
        for prefix, part in _parts(state)
    ]
    if not cases:
        raise ValueError(f"weights: {path} holds no state_dict, neither alone nor under a key")
    _, _, where, prefix, part = max(cases, key=lambda case: case[:2])
    classes = part.get(f"{head}.weight")
    if classes is not None and classes.shape[1:] != wanted[f"{head}.weight"].shape[1:]:
        part = {key: value for key, value in part.items() if not key.startswith(f"{head}.")}
    counts = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    part = counts | part  # old files lack them
    in_head = (f"{head}.",) if head else ()
    for key in wanted:
        if not key.startswith(in_head) and (
            key not in part or part[key].shape != wanted[key].shape
        ):
            here = tuple(part[key].shape) if key in part else "not there"
            raise ValueError(
                f"weights: {path} does not fit {name}: {key} is {here}, but must be "
                f"{tuple(wanted[key].shape)}"
            )
    extra = [key for key in part if key not in wanted]
    own = {child for child, _ in model.named_children()} - {head.partition(".")[0]}
    if foreign := [key for key in extra if key.partition(".")[0] in own]:
        raise ValueError(f"weights: {path} does not fit {name}, which has no {foreign[0]}")
    usual = where in ("", "model", "state_dict")
    note = f" under {where!r}" * (not usual) + f", names without {prefix!r}" * bool(prefix)
    note += f"; left out {', '.join(sorted({key.partition('.')[0] for key in extra}))}" * bool(
        extra
    )
    return Fitting({key: part[key] for key in wanted if key in part}, note)


def is_of_package(content: Any) -> bool:
    """True if a file holds weights of a network of `efficientnet_pytorch`.

    >>> is_of_package({"_conv_stem.weight": torch.zeros(1)})
    True
    """
    return any("_conv_stem.weight" in key for key in state_keys(content))


def state_keys(content: Any) -> list[str]:
    """Names of all tensors that a file holds.

    >>> state_keys({"model": {"w": torch.zeros(1)}})
    ['w']
    """
    return [key for _, state in _states(content) for key in state]


def _states(content: Any, where: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in content.items():
        yield from _states(value, f"{where}.{key}".strip("."))


def _parts(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A state_dict without each beginning that its names have."""
    beginnings = {"": None}
    for key in state:
        parts = key.split(".")[:-1]
        beginnings |= {".".join(parts[:i]) + ".": None for i in range(1, min(len(parts), 4) + 1)}
    for beginning in beginnings:
        n = len(beginning)
        yield beginning, {key[n:]: v for key, v in state.items() if key.startswith(beginning)}


def _rank(part: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    hits = sum(key in wanted and value.shape == wanted[key].shape for key, value in part.items())
    preferred = any(word in where for word in ("ema", "teacher", "encoder_q"))
    return hits, preferred - any(word in where for word in ("student", "encoder_k"))


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def load(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Loads a state_dict into a model, or says why it does not fit.

    >>> load(nn.Linear(2, 1), nn.Linear(2, 1).state_dict(), "linear", Path("a.pt"))
    """
    content = OrderedDict(state)  # without versions, as old files are; but MNASNet asks for its own
    content._metadata = {"": model.state_dict()._metadata[""]}  # type: ignore[attr-defined]
    try:
        model.load_state_dict(content, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} does not fit {name}: {shortened(error)}") from error


def damaged(path: Path, error: Exception) -> ValueError:
    """Makes the error of a file that cannot be read.

    >>> type(damaged(Path("a.pt"), EOFError()))
    <class 'ValueError'>
    """
    return ValueError(
        f"weights: {path} is damaged, truncated or holds more than tensors, and was not loaded "
        f"({type(error).__name__}: {shortened(error)})"
    )


def shortened(error: Exception) -> str:
    """Puts the text of an error on one line.

    >>> shortened(ValueError("two\\nlines"))
    'two lines'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


def sha256(path: Path) -> str:
    """Hashes a file; returns hexadecimal digits.

    >>> len(sha256(Path(__file__)))
    64
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
