"""What holds for every figure, whatever it shows."""

import matplotlib


def assert_renders(draw, folder):
    """A figure renders, and drawing it does not touch the global style."""
    before = dict(matplotlib.rcParams)
    draw().savefig(folder / "figure.svg")
    assert (folder / "figure.svg").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before
