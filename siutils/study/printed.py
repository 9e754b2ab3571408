"""What the reference study printed."""

from pathlib import Path

import pandas as pd


def load_study() -> pd.DataFrame:
    """Reads the numbers that the reference study printed.

    Returns:
        DataFrame ``table, arm, network, layer, split, index, value``; table 4 is its layer curve.

    >>> load_study().query("table == 1 and index == 'si'")["value"].tolist()
    [0.17406, 0.69742]
    """
    return pd.read_csv(Path(__file__).with_name("study.csv"))
