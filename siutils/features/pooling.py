"""Pooling: how much of a layer's spatial layout its features keep.

A *job* is one layer with one way of pooling it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

Pool = str | int | None
Job = tuple[str, Pool]  # a layer and how it is pooled


def pooled(output: Tensor, pool: Pool) -> Tensor:
    """Turns a layer's output (B, …) into float32 (B, D): flattened, or averaged over space first.

    * None: flattened as it is;
    * `"mean"`: of (B, C, H, W) and other outputs with space behind the channels, the mean of each
      channel (B, C); of tokens (B, T, C), as in transformers, their mean (B, C);
    * an integer g: of (B, C, H, W), the means of a g × g grid (B, C·g·g), as
      `nn.AdaptiveAvgPool2d` divides it; a side shorter than g stays as it is.

    Outputs (B, D) have nothing to pool. Which axis is which is guessed: of (B, a, a, c), as Swin's
    blocks and layers in ConvNeXt's give it for square images, channels are the last, else the
    first, and also where the memory tells that they are (`torch.channels_last`, as convolutions
    leave it here); (B, C, L) is taken for tokens. Append a layer that permutes them where that is
    wrong.

    Raises:
        ValueError: a grid of an output that has no height and width.

    >>> pooled(Tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), "mean")
    tensor([[2.5000]])
    """
    output = output.float()
    if pool is None or output.dim() <= 2:
        return output.flatten(1) if output.dim() > 1 else output[:, None]
    if output.dim() == 4 and output.shape[1] == output.shape[2] and output.stride(1) != 1:
        output = output.permute(0, 3, 1, 2)
    if pool == "mean":
        return output.mean(1) if output.dim() == 3 else output.flatten(2).mean(2)
    if output.dim() != 4:
        raise ValueError(f"pool={pool} needs outputs (B, C, H, W), got {tuple(output.shape)}")
    height, width = (min(int(pool), n) for n in output.shape[2:])
    return F.adaptive_avg_pool2d(output, (height, width)).flatten(1)


def main_output(output: object) -> object:
    """Returns a layer's output, or the first entry of a tuple, list, dictionary or dataclass:
    recurrent and attention modules return states or weights behind it. Quantized ones as floats.

    >>> main_output((1, 2)), main_output({"logits": [3]}), main_output(()), main_output(4)
    (1, 3, (), 4)
    """
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            parts = list(output.values())
        elif dataclasses.is_dataclass(output):
            parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
        else:
            parts = list(output) if isinstance(output, tuple | list) else []
        if not parts:
            return output
        output = parts[0]
    return output.dequantize() if output.is_quantized else output


def check_pools(pool: Pool | Sequence[Pool]) -> list[Pool]:
    """Checks ways of pooling; returns them as a list without repetitions.

    >>> check_pools(None), check_pools([2, "mean", 2])
    ([None], [2, 'mean'])
    """
    pools: list[Any] = list(pool) if isinstance(pool, list | tuple) else [pool]
    for p in pools:
        grid = isinstance(p, int) and not isinstance(p, bool) and p >= 1
        if not (p is None or p == "mean" or grid):
            raise ValueError(f"pool must be None, 'mean' or a positive integer, got {p!r}")
    if not pools:
        raise ValueError("pool is an empty list; None stands for no pooling")
    return list(dict.fromkeys(pools))


def parse_pools(names: Sequence[str]) -> list[Pool]:
    """Parses typed ways of pooling: flattened, mean, or the side of a grid.

    >>> parse_pools(["flattened", "mean", "2"])
    [None, 'mean', 2]
    """
    return check_pools([None if p == "flattened" else int(p) if p.isdigit() else p for p in names])


def pool_name(pool: Pool) -> str:
    """Names a way of pooling for tables.

    >>> pool_name(None), pool_name("mean"), pool_name(2)
    ('flattened', 'mean', '2×2')
    """
    if pool is None:
        return "flattened"
    return f"{pool}×{pool}" if isinstance(pool, int) else pool
