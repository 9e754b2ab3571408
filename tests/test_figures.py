"""What holds for every figure, whatever it shows."""

import matplotlib
import pytest
import test_layer_plots
import test_network_plots
import test_plots

FIGURES = {
    f"{module.__name__}: {name}": draw
    for module in (test_plots, test_network_plots, test_layer_plots)
    for name, draw in module.FIGURES.items()
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_render_without_touching_the_global_style(name, tmp_path):
    before = dict(matplotlib.rcParams)
    FIGURES[name]().savefig(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before
