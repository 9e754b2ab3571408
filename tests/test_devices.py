"""Which device is used, and that none is replaced silently."""

import pytest
import torch

from siutils.core.devices import NoSuchDevice, resolve_device


def test_resolve_device():
    auto = resolve_device()
    assert auto.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    for kind in (RuntimeError, ValueError, NoSuchDevice):
        with pytest.raises(kind, match=r"device='cuda:99'.*use device='auto'"):
            resolve_device("cuda:99")
    for wrong in ("gpu", "meta", None):
        with pytest.raises(ValueError, match="device must be"):
            resolve_device(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent():
    with pytest.raises(RuntimeError, match="sees 0 CUDA device"):
        resolve_device("cuda")
