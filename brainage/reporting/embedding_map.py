"""Section: the embedding of the main network in two dimensions, by age and by site."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import KEY, read_table
from brainage.downstream.results import SCORED
from brainage.reporting import figures
from brainage.reporting.page import Block, Page

FEWEST_POINTS = 3


def embedding_map(page: Page) -> list[Block]:
    """The first two principal components of the test scans; of all embedded scans where there are none."""
    rows = _embedded(page)
    if rows is None:
        return [page.missing("Embedding map: no scans were embedded with this network yet.")]
    features = page.run.features
    tested = rows["split"].isin(SCORED)
    where = "test scans" if tested.sum() >= FEWEST_POINTS else "scans"
    rows = rows[tested] if tested.sum() >= FEWEST_POINTS else rows
    points, shares = principal_plane(np.vstack(rows[features].to_list()))
    kept = figures.thin(len(rows), page.run.experiment.evaluate.scatter_points)
    ages, everyone = rows["age_years"].to_numpy(float), len(rows)
    r = [_correlation(points[:, i], ages) for i in (0, 1)]
    labels = (f"component 1 ({100 * shares[0]:.0f} % of variance)", f"component 2 ({100 * shares[1]:.0f} %)")
    by_age = figures.map_by_age(points[kept], ages[kept], labels=labels, title="By age")
    by_site = figures.map_by_site(points[kept], rows["site"].iloc[kept], labels=labels, title="By site")
    shown = f"{everyone} {where}" if len(kept) == everyone else f"{len(kept)} of {everyone} {where}"
    told = f"Two principal components of the embedding, {shown}, coloured by"
    caption = (
        f"Principal components of the {features} embedding, {shown}. Correlation with age: {r[0]:.2f} and {r[1]:.2f}."
    )
    mixing = "Sites that mix at equal age mean that little of the scanner is left."
    drawn = [
        page.draw(
            "map_age", by_age, alt=f"{told} age; correlation with age {r[0]:.2f} and {r[1]:.2f}.", caption=caption
        ),
        page.draw("map_site", by_site, alt=f"{told} site; {rows['site'].nunique()} sites.", caption=mixing),
    ]
    return [Block("figures", drawn)]


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components [n, 2] of vectors [n, D], and their shares of the variance.

    A component's sign is the one that makes its largest loading positive, so that equal input gives an equal map.
    """
    centred = vectors.astype(float) - vectors.mean(axis=0, dtype=float)
    if centred.shape[1] == 1:
        centred = np.column_stack([centred, np.zeros(len(centred))])
    values, axes = np.linalg.eigh(centred.T @ centred)
    values, axes = values[::-1], axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    shares = values[:2].clip(min=0) / max(float(values.clip(min=0).sum()), np.finfo(float).tiny)
    return centred @ axes, shares


def _embedded(page: Page) -> pd.DataFrame | None:
    run = page.run
    path = run.embeddings.get(run.label) or run.embeddings.get(run.model)
    if path is None or run.table is None:
        return None
    rows = read_table(path).merge(run.table[[*KEY, "site", "age_years", "split"]], on=KEY, how="inner")
    return rows if len(rows) >= FEWEST_POINTS else None


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
