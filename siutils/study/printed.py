"""What the reference study printed, and whether it can be right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

_ROW = ["table", "arm", "network", "split"]
# Samples by table and split, as the text says.
_STATED_N = {(1, "train"): 50_000, (4, "train"): 35_000}
_STATED_N |= {(table, "train"): 36_000 for table in (2, 3)}
_STATED_N |= {(table, "test"): 10_000 for table in (2, 3, 4)}


def load_study() -> pd.DataFrame:
    """Reads the numbers that the reference study printed.

    Returns:
        DataFrame ``table, arm, network, layer, split, index, value``; table 4 is its layer curve.

    >>> load_study().query("table == 1 and index == 'si'")["value"].tolist()
    [0.17406, 0.69742]
    """
    return _read().astype({"value": float})


def check_printed() -> pd.DataFrame:
    """Checks every row that the study printed against what must hold whatever the samples are.

    At order 2, anti SI = 1 − 2 · soft-order SI + high-order SI on any one set; at any order it is
    at most 1 − SI. A value of N samples is a multiple of 1/N, of soft-order SI of 1/(2N); a printed
    value may be rounded or cut off. The eight layers of a curve are one row.

    Returns:
        DataFrame ``table, arm, network, split``; ``anti_si`` as printed, ``by_identity`` with its
        ``rounding`` (missing for curves), ``n_stated``, ``values`` in the row, ``fine`` (how many
        of them have digits fine enough to tell multiples of 1/N from other numbers),
        ``no_multiples`` (the values that N samples cannot give) and ``verdict``.

    >>> check_printed()["verdict"].str.contains("anti SI is of other samples").sum()
    np.int64(5)
    """
    rows = []
    for key, part in _read().groupby(_ROW, sort=False):
        found: dict[str, Any] = dict(zip(_ROW, key, strict=True))
        n = _STATED_N[found["table"], found["split"]]
        multiples = {"soft_order_si": 2 * n}
        printed = [(text, multiples.get(name, n)) for name, text in part[["index", "value"]].values]
        wrong = [text for text, m in printed if not _is_multiple(text, m)]
        faults = []
        by_name = dict(part[["index", "value"]].values)
        if "anti_si" in by_name:
            found |= _identity(by_name)
            if abs(found["anti_si"] - found["by_identity"]) > found["rounding"] + 1e-9:
                faults.append("anti SI is of other samples than the rest")
            if found["anti_si"] > 1 - float(by_name["si"]) + 2 * _unit(by_name["si"]):
                faults.append("anti SI is above 1 − SI, which no order allows")
        if wrong:
            faults.append(f"{len(wrong)} of {len(printed)} are no multiples of 1/{n:,}")
        found |= {"n_stated": n, "values": len(printed)}
        found |= {"fine": sum(_unit(text) < 1 / m for text, m in printed)}
        found |= {"no_multiples": ", ".join(wrong), "verdict": "; ".join(faults) or "no fault"}
        rows.append(found)
    return pd.DataFrame(rows)


def _identity(printed: dict[str, str]) -> dict[str, float]:
    soft, high, anti = (printed[name] for name in ("soft_order_si", "high_order_si", "anti_si"))
    return {
        "anti_si": float(anti),
        "by_identity": 1 - 2 * float(soft) + float(high),
        "rounding": _unit(soft) + _unit(high) / 2 + _unit(anti) / 2,
    }


def _is_multiple(text: str, n: int) -> bool:
    value, unit, tiny = float(text), _unit(text), 1e-9
    gaps = [m / n - value for m in (math.floor(value * n), math.floor(value * n) + 1)]
    return any(-unit / 2 - tiny <= gap <= unit + tiny for gap in gaps)


def _unit(text: str) -> float:
    """The worth of the last digit of a decimal number."""
    return 10.0 ** -len(text.partition(".")[2])


def _read() -> pd.DataFrame:
    """The values as text, to the digit."""
    return pd.read_csv(Path(__file__).with_name("study.csv"), dtype={"value": str})
