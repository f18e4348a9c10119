"""Figures: what is drawn is what was given, the same bytes each time, legible."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from brainage.reporting import figures
from brainage.reporting.style import SPLIT_COLOURS, save_figure


def _points(figure: Figure) -> np.ndarray:
    collections = [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]
    return np.concatenate([np.asarray(c.get_offsets()) for c in collections])


def _scatter(n: int, most: int) -> Figure:
    ages = np.linspace(20, 80, n)
    return figures.age_scatter(ages, ages + 1, split="test_internal", most=most, limits=(15, 85), title="L^exp")


def test_a_scatter_draws_every_point_up_to_the_limit_and_a_subset_of_them_above():
    every, thinned = _points(_scatter(50, 50)), _points(_scatter(50, 20))
    assert np.allclose(every[:, 1] - every[:, 0], 1)
    assert len(every) == 50
    assert len(thinned) == 20
    assert {tuple(point) for point in thinned} <= {tuple(point) for point in every}


def test_a_scatter_has_the_identity_line():
    line = _scatter(5, 5).axes[0].lines[0]
    assert np.array_equal(line.get_xdata(), line.get_ydata())


def test_equal_figures_give_equal_files_and_both_kinds_are_written(tmp_path):
    first, second = (save_figure(_scatter(30, 30), tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_points_are_a_raster_in_the_svg_and_letters_are_outlines(tmp_path):
    save_figure(_scatter(3000, 3000), tmp_path / "many")
    svg = (tmp_path / "many.svg").read_text()
    assert "<image" in svg
    assert "<text" not in svg
    assert len(svg) < 200_000


def test_drawing_leaves_the_callers_matplotlib_settings_alone():
    before = dict(matplotlib.rcParams)
    _scatter(5, 5)
    assert dict(matplotlib.rcParams) == before


def test_with_many_sites_the_largest_are_named_and_every_point_is_drawn_once():
    site = pd.Series([f"site{i:02d}" for i in range(60) for _ in range(i + 1)])
    points = np.random.default_rng(0).normal(size=(len(site), 2))
    figure = figures.map_by_site(points, site, labels=("a", "b"), title="By site")
    drawn = _points(figure)
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, points))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "52 other sites (1378)"  # 1 + 2 + ... + 52
    assert labels[1:] == [f"site{i:02d} ({i + 1})" for i in range(59, 51, -1)]


def test_a_site_without_a_name_or_with_a_dollar_sign_is_drawn(tmp_path):
    site = pd.Series(["cost$1$x", pd.NA, "b"], dtype="string")
    figure = figures.map_by_site(np.eye(3)[:, :2], site, labels=("a", "b"), title="By site")
    save_figure(figure, tmp_path / "map")
    assert "unknown (1)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_long_curve_is_drawn_as_means_of_neighbouring_steps_within_their_spread():
    value = np.random.default_rng(0).normal(size=1600)
    axes = figures.curve({"train": pd.DataFrame({"step": np.arange(1600), "value": value})}, title="Loss").axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), value.reshape(160, 10).mean(axis=1))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(value.max())
    assert band.min() == pytest.approx(value.min())


def test_bands_are_in_the_order_of_age_and_each_split_has_its_colour_and_marker():
    bands = pd.DataFrame(
        [
            ["test_external", "100-109", 9, 8, 10],
            ["test_internal", "8-9", 5, 4, 6],
            ["test_internal", "20-29", 6, 5, 7],
        ],
        columns=["split", "part", "estimate", "low", "high"],
    )
    axes = figures.error_by_band(bands, ylabel="MAE (years)", title="Error", zero_line=False).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8-9", "20-29", "100-109"]
    drawn = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() in ("o", "s")}
    assert drawn == {(SPLIT_COLOURS["test_internal"], "o"), (SPLIT_COLOURS["test_external"], "s")}


def test_the_first_row_of_dots_is_on_top_and_the_reference_is_named():
    rows = pd.DataFrame({"name": ["L^exp", "ridge"], "estimate": [4.0, 6.0], "low": [3.0, 5.0], "high": [5.0, 7.0]})
    axes = figures.dots_with_intervals(
        rows, xlabel="MAE", title="External", colours=["#000", "#000"], reference=13.0, reference_name="mean predictor"
    ).axes[0]
    places = {label.get_text(): label.get_position()[1] for label in axes.get_yticklabels()}
    assert places["$L^{exp}$"] > places["ridge"]
    assert [text.get_text() for text in axes.texts] == ["mean predictor"]
    assert axes.get_xlim()[1] > 13


def test_a_histogram_counts_every_scan_of_every_split():
    ages = {"train": np.array([20.0, 20.1, 85.0]), "val": np.array([]), "test_external": np.array([44.9, 45.0])}
    figure = figures.age_histogram(ages)
    assert [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes] == [3, 2]
