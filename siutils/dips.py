"""Why does SI fall from one layer to the next? What the paired tests say about each explanation.

An explanation is tested by conditions that take away what it holds responsible: learning, by a
network that has learned nothing; layout, by features without any; and so on. If the fall stays
without it, the explanation cannot be the only one; if the fall goes, it may be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

ROW = "**{case}**: SI {before:.3f} → {after:.3f}, change {change:+.3f} ({low:+.3f} … {high:+.3f}), "


def findings(
    tests: pd.DataFrame, baseline: str, explanations: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """One finding per explanation, from the verdicts of its conditions.

    Args:
        tests: rows of :func:`siutils.transitions.paired_tests`.
        baseline: the case to be explained.
        explanations: what is held responsible → the cases that leave it out.

    Returns:
        DataFrame: ``explanation``, ``falls``, ``rises``, ``unclear`` (cases with that verdict,
        comma-separated), ``finding`` (a sentence).

    Raises:
        KeyError: a case without a test.

    >>> tests = pd.DataFrame({"case": ["trained", "untrained"], "verdict": ["falls", "falls"]})
    >>> findings(tests, "trained", {"learning": ["untrained"]})["finding"].tolist()
    ['The fall is there without learning, too (untrained): learning cannot be the only reason.']
    """
    verdicts = dict(zip(tests["case"], tests["verdict"], strict=True))
    rows = []
    for explanation, cases in explanations.items():
        sorted_out = {
            verdict: [case for case in cases if verdicts[case] == verdict]
            for verdict in ("falls", "rises", "unclear")
        }
        text = _finding(explanation, verdicts[baseline], sorted_out)
        joined = {verdict: ", ".join(found) for verdict, found in sorted_out.items()}
        rows.append({"explanation": explanation, **joined, "finding": text})
    return pd.DataFrame(rows)


def _finding(explanation: str, baseline: str, cases: Mapping[str, Sequence[str]]) -> str:
    falls, rises = (", ".join(cases[verdict]) for verdict in ("falls", "rises"))
    if baseline == "falls":
        if falls and rises:
            return (
                f"Without {explanation} the fall is there ({falls}) or becomes a rise ({rises}): "
                "it depends."
            )
        if falls:
            return (
                f"The fall is there without {explanation}, too ({falls}): {explanation} cannot be "
                "the only reason."
            )
        if rises:
            return f"Without {explanation} SI rises ({rises}): {explanation} may be the reason."
        return f"Without {explanation} no change is shown: {explanation} may contribute."
    if falls:
        return f"Without {explanation} SI falls ({falls}), with {explanation} no fall is shown."
    return f"No fall is shown, neither with nor without {explanation}: nothing to explain."


def sentence(row: Mapping[str, float | str]) -> str:
    """A test of :func:`siutils.transitions.paired_tests` in words.

    >>> row = {"case": "untrained", "before": 0.31, "after": 0.3, "change": -0.01, "low": -0.04}
    >>> text = sentence(row | {"high": 0.02, "p_holm": 0.8, "verdict": "unclear"})
    >>> text.split(", ", 1)[1]
    'change -0.010 (-0.040 … +0.020), p = 0.800: no change is shown.'
    """
    words = {"falls": "a fall", "rises": "a rise", "unclear": "no change is shown"}
    p = float(row["p_holm"])
    shown = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    return ROW.format(**row) + f"{shown}: {words[str(row['verdict'])]}."
