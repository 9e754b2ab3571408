"""Which device to compute on, by name."""

import torch


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such kind of device.
        RuntimeError: the device asked for is not there.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' …, got {device!r}") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise RuntimeError(
                f"device={str(device)!r} was asked for, but PyTorch sees {count} CUDA device(s); "
                "use device='auto' or 'cpu', or install a CUDA build of PyTorch"
            )
        index = torch.cuda.current_device() if found.index is None else found.index
        return torch.device("cuda", index)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise RuntimeError("device='mps' was asked for, but is not available; use 'auto' or 'cpu'")
    if found.type not in ("cpu", "mps"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'mps', got {device!r}")
    return found
