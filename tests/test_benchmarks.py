"""The README shows what the benchmarks measured."""

import json
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
NEIGHBORS = pd.read_csv(ROOT / "benchmarks" / "neighbors-cpu.csv")
ROWS = {
    "pixels": "raw pixels, D = 3,072",
    "resnet18": "ResNet18 features, D = 512",
    "efficientnet_b0": "EfficientNet-B0 features, D = 1,280",
    "noise": "Gaussian noise, D = 512",
}


def shown(part):
    """What README.md has between the comments of a part."""
    return (ROOT / "README.md").read_text().split(f"<!-- {part} -->")[1].split(f"<!-- /{part} ")[0]


def test_readme_table_is_that_of_the_benchmark():
    cells = NEIGHBORS[NEIGHBORS["n"] == 50000].set_index(["workload", "k", "contestant"])
    expected = []
    for workload, name in ROWS.items():
        for k in (2, 10):
            ours, others = cells.loc[(workload, k, "siutils")], []
            for contestant in ("matmul", "sklearn", "faiss"):
                row = cells.loc[(workload, k, contestant)]
                assert row["run"] == ours["run"]  # a ratio is of one run
                assert (row["repeats"], ours["repeats"], row["queries"]) == (5, 5, 1280)
                others.append(f"{row['time_s']:.3g} s ({row['ratio']:.1f} ×)")
            memory = f"{round(ours['peak_mb'], -1):.0f} MB"
            line = [f"{name}, k = {k}", f"{ours['time_s']:.3g} s", *others, memory]
            expected.append("| " + " | ".join(line) + " |")
    assert shown("neighbors").strip().splitlines()[2:] == expected


def test_readme_says_how_fast_brute_force_could_be():
    pixels = NEIGHBORS.query("workload == 'pixels' and n == 50_000 and k == 2")
    rows = pixels.set_index("contestant")
    rate = rows["gflops"]
    expected = (
        f"the float32 product makes {rate['matmul']:.0f} GFLOP/s of them and faiss "
        f"{rate['faiss']:.0f}, about what a plain matrix product can "
        f"({rows['sgemm_gflops'].iloc[0]:.0f}); siutils answers as fast as if it made "
        f"{rate['siutils']:,.0f}"
    )
    assert " ".join(shown("rates").split()) == expected


def test_readme_says_where_the_time_of_a_search_goes():
    table = pd.read_csv(ROOT / "benchmarks" / "stages.csv").query("workload == 'pixels' and k == 2")
    table = table.sort_values("percent", ascending=False)
    expected = [f"{row.percent:.0f} % {row.stage}" for row in table.itertuples() if row.percent > 2]
    assert " ".join(shown("stages").split()) == ", ".join(expected)


def test_readme_says_how_much_memory_layers_take():
    row = pd.read_csv(ROOT / "benchmarks" / "layers.csv").iloc[-1]
    expected = (
        f"all {row['scored_here']} stages of EfficientNetV2-S for {row['n']:,} images of "
        f"{row['size']}×{row['size']}, up to {row['most_features']:,} features, took "
        f"{row['peak_beyond_mb'] / 1000:.1f} of {row['memory_limit_mb'] / 1000:.1f} GB and "
        f"{row['wall_s'] / 60:.0f} minutes on {row['threads']} cores"
    )
    assert row["peak_beyond_mb"] < row["memory_limit_mb"]
    assert " ".join(shown("layers").split()) == expected


def test_every_run_of_the_benchmark_says_where_it_ran():
    stages = json.loads((ROOT / "benchmarks" / "stages.json").read_text())
    assert not stages["git"]["dirty"]
    for table in (ROOT / "benchmarks").glob("neighbors-*.csv"):
        runs = json.loads(table.with_suffix(".json").read_text())
        assert set(pd.read_csv(table)["run"]) == set(runs)
        assert all(not run["git"]["dirty"] and run["hardware"] for run in runs.values())
