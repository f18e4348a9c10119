"""The one style of all figures: colours, type, and how a figure becomes files.

Colours are Okabe and Ito's, told apart by people with any colour vision; letters are drawn as outlines, so that a
figure looks the same on every machine.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal
from matplotlib.text import Text

ACCENT = "#0072B2"
INK, MUTED, GRID = "#1f2933", "#66727f", "#e3e7eb"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#5D3A9B"]
SPLIT_COLOURS = {"train": "#8a949e", "val": "#E69F00", "test_internal": "#0072B2", "test_external": "#D55E00"}
SPLIT_NAMES = {"train": "train", "val": "val", "test_internal": "internal test", "test_external": "external test"}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "mathtext.fontset": "dejavusans",
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.labelsize": 9, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.solid_capstyle": "round", "figure.facecolor": "white", "savefig.facecolor": "white",
    "svg.fonttype": "path", "svg.hashsalt": "brainage", "image.cmap": "viridis",
}  # fmt: skip
WIDTH, HEIGHT = 4.4, 3.5  # inches; one column of the page
RASTER_DPI = 200
P = ParamSpec("P")
R = TypeVar("R")


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the one style of all figures."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        style: Any = {**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}
        with matplotlib.rc_context(style):
            return function(*args, **kwargs)

    return wrapped


@styled
def save_figure(figure: Figure, stem: Path, *, pdf: bool = True) -> str:
    """Write `stem`.svg, .png and, if asked, .pdf; gives the SVG as a data URI. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=RASTER_DPI, metadata={"Date": None, "Creator": None})
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(stem.name + ".svg").write_bytes(buffer.getvalue())
    figure.set_layout_engine("none")  # keeps the places found for the SVG
    figure.savefig(stem.with_name(stem.name + ".png"), dpi=160, metadata={"Software": None})
    if pdf:
        _save_pdf(figure, stem.with_name(stem.name + ".pdf"))
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _save_pdf(figure: Figure, path: Path) -> None:
    for letters in figure.findobj(Text):
        letters.set_path_effects([Normal()])  # drawn as outlines, as in the SVG
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    figure.savefig(path, dpi=RASTER_DPI, metadata=undated)


def names(text: str) -> str:
    """Mathematical names as matplotlib sets them.

    >>> names("L^exp")
    '$L^{exp}$'
    """
    return (
        text.replace("L^exp", "$L^{exp}$").replace("L^thr", "$L^{thr}$").replace("L_c", "$L_c$").replace("R^2", "$R^2$")
    )


def plain(name: str, most: int = 16) -> str:
    """A name from the cohort, short and without what matplotlib would read as mathematics."""
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")
