"""Computing devices by name."""

import torch


class NoSuchDevice(RuntimeError, ValueError):
    """A device that this machine does not have."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Returns the device with this name; ``"auto"`` is CUDA if there is a GPU, else the CPU.

    Raises:
        ValueError: `device` is not a CPU, CUDA or MPS device.
        NoSuchDevice: this machine does not have the device.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = torch.device("meta")  # refused below
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'mps', got {device!r}")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise NoSuchDevice("device='mps' was asked for, but is not available; use 'auto' or 'cpu'")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise NoSuchDevice(
                f"device={str(device)!r} was asked for, but PyTorch sees {count} CUDA device(s); "
                "use device='auto' or 'cpu', or install a CUDA build of PyTorch"
            )
        if resolved.index is None:
            resolved = torch.device("cuda", torch.cuda.current_device())
    return resolved
