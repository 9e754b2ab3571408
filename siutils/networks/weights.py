"""Files of weights: read as tensors, never as code, with errors that say what to do."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.hub
from torch import Tensor, nn


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


def from_hub(url: str, load: Callable[..., Any]) -> tuple[dict[str, Tensor], Path]:
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
    return tensors(content, path), path


def read(path: Path) -> Any:
    """Reads a file, and returns its content or what lies under "model" or "state_dict".

    >>> import io
    >>> torch.save({"model": {"w": torch.zeros(2)}}, file := io.BytesIO())
    >>> _ = file.seek(0)
    >>> read(file)
    {'w': tensor([0., 0.])}
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise nearly anything
        raise damaged(path, error) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the content of a file as a state_dict, or refuses it.

    >>> tensors({"w": torch.zeros(2)}, Path("a.pt"))
    {'w': tensor([0., 0.])}
    """
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"weights: {path} holds no state_dict, neither alone nor under 'model' or 'state_dict'"
        )
    return dict(content)


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
