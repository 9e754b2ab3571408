"""Why does SI fall from one layer to the next? What the paired tests say about each explanation.

A condition takes away what an explanation holds responsible: an untrained network takes away
learning, channel means take away layout. A fall that is significant in one case and not in the
other proves nothing. The difference of the two changes does, image by image, with its interval. If
the fall stays, the explanation is not the only one. If the fall becomes smaller, the explanation
has a part in it, together with all else that the condition changes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from siutils.layers.transitions import compare_changes
from siutils.separation import Record

ROW = "**{case}**: SI {before:.3f} → {after:.3f}, change {change:+.3f} ({low:+.3f} … {high:+.3f}), "
ALIKE = 0.02  # share of samples that differ, below which two layers tell too little
CHANGE = "{change:+.3f} ({low:+.3f} … {high:+.3f})"


def findings(
    cases: Mapping[str, tuple[Record, Record]],
    tests: pd.DataFrame,
    explanations: Mapping[str, tuple[str, Collection[str]]],
    other_samples: Collection[str] = (),
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Compares the change of SI with and without what each explanation holds responsible.

    Args:
        cases: name → the earlier and the later layer.
        tests: rows of `siutils.layers.paired_tests` on these cases.
        explanations: what is held responsible → the case to be explained, and those without it.
        other_samples: cases on other samples than the rest, which cannot be paired with it.
        alpha: chance that any interval misses its difference (Bonferroni).

    Returns:
        DataFrame, a row per explanation and case: ``explanation, case, baseline, difference, low,
        high`` (change of the case less that of the baseline), ``finding`` (a sentence).

    Raises:
        KeyError: a case that there is not.

    >>> import torch
    >>> y, near = torch.zeros(400).long(), torch.zeros(400, 1)
    >>> half, none = (
    ...     Record(y, (near, near), torch.arange(400)[:, None] < n, reference_counts=[400])
    ...     for n in (200, 0))
    >>> row = {"change": 0.0, "low": 0.0, "high": 0.0, "verdict": "unclear"}
    >>> fall = {"case": "trained", "change": -0.5, "verdict": "falls"}
    >>> tests = pd.DataFrame([row | fall, row | {"case": "untrained"}])
    >>> cases = {"trained": (half, none), "untrained": (half, half)}
    >>> table = findings(cases, tests, {"learning": ("trained", ["untrained"])})
    >>> table["finding"][0].split("; ")[1]
    'difference +0.500 (+0.451 … +0.549): the fall is smaller, none is shown to be left.'
    """
    rows: dict[str, Any] = {row["case"]: row for row in tests.to_dict("records")}
    pairs = [
        (what, base, case) for what, (base, without) in explanations.items() for case in without
    ]
    level = 1 - alpha / max(1, sum(case not in other_samples for _, _, case in pairs))
    findings = []
    for what, base, case in pairs:
        paired = case not in other_samples
        gap = compare_changes(cases[case], cases[base], level) if paired else (math.nan,) * 3
        numbers = dict(zip(("difference", "low", "high"), gap, strict=True))
        text = (
            f"Without {what} ({case}): change {CHANGE.format(**rows[case])} against "
            f"{CHANGE.format(**rows[base])} of {base}; {_finding(rows[base], rows[case], gap)}."
        )
        row = {"explanation": what, "case": case, "baseline": base} | numbers
        findings.append(row | {"finding": text})
    return pd.DataFrame(findings)


def _finding(
    base: Mapping[str, Any], case: Mapping[str, Any], gap: tuple[float, float, float]
) -> str:
    if math.isnan(gap[0]):
        return "these are other images, so that the difference is not tested"
    text = "difference {:+.3f} ({:+.3f} … {:+.3f}): ".format(*gap)
    shown = gap[1] > 0 or gap[2] < 0
    if base["verdict"] != "falls":
        return text + ("shown" if shown else "not shown") + "; there is no fall to explain"
    left = {"falls": "a fall is left", "rises": "SI rises", "unclear": "none is shown to be left"}
    if shown:
        size = "smaller" if gap[0] > 0 else "larger"
        return f"{text}the fall is {size}, {left[case['verdict']]}"
    alone = ", and the fall is there: this is not the only reason" * (case["verdict"] == "falls")
    return f"{text}not shown to matter{alone}"


def sentence(row: Mapping[str, float | str]) -> str:
    """Words a row of `siutils.layers.paired_tests`.

    >>> row = {"case": "untrained", "before": 0.31, "after": 0.3, "change": -0.01, "low": -0.04}
    >>> row |= {"high": 0.02, "p_holm": 0.8, "verdict": "unclear", "gained": 1, "lost": 2, "n": 100}
    >>> text = sentence(row)
    >>> text.split(", ", 1)[1]
    'change -0.010 (-0.040 … +0.020), p = 0.800: no change is shown. 1 gained, 2 lost of 100.'
    >>> sentence(row | {"lost": 0}).split(". ")[-1]
    '1 gained, 0 lost of 100: layers so alike cannot tell what lies between them.'
    """
    words = {"falls": "a fall", "rises": "a rise", "unclear": "no change is shown"}
    p = float(row["p_holm"])
    shown = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    few = float(row["gained"]) + float(row["lost"]) < ALIKE * float(row["n"])
    moved = f"{row['gained']:,} gained, {row['lost']:,} lost of {row['n']:,}"
    alike = ": layers so alike cannot tell what lies between them" * few
    return ROW.format(**row) + f"{shown}: {words[str(row['verdict'])]}. {moved}{alike}."
