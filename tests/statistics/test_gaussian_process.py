"""The Gaussian process against scikit-learn's, and its sparse form against the bound written out."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from brainage.statistics.gaussian_process import GaussianProcess
from brainage.statistics.nystroem import choose_landmarks, kernel_map, squared_distances


def curve(n=120, D=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, D))
    return X, 50 + 10 * np.sin(1.5 * X[:, 0]) + 5 * X[:, 1] + rng.normal(0, 3, n)


def reference(process, X, y, optimizer=None):
    """scikit-learn's process at the hyper-parameters of ours; with an optimizer from there."""
    kernel = ConstantKernel(process.signal_variance_, (1e-3, 1e6)) * RBF(process.width_, (1e-3, 1e4)) + WhiteKernel(
        process.noise_variance_, (1e-6, 1e5)
    )
    return GaussianProcessRegressor(kernel, alpha=0, optimizer=optimizer).fit(X, y - y.mean())


@pytest.mark.parametrize("columns", [3, 40])
def test_with_all_rows_as_inducing_points_it_is_scikit_learns(columns):
    X, y = curve(D=columns)
    new = curve(n=25, D=columns, seed=1)[0] * 2
    ours = GaussianProcess().fit(X, y)
    theirs = reference(ours, X, y)
    mean, sd = theirs.predict(new, return_std=True)
    np.testing.assert_allclose(ours.predict(new), y.mean() + mean, rtol=1e-5)
    np.testing.assert_allclose(ours.predict_both(new)[1], sd, rtol=1e-5)
    assert ours.bound_ == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-3)
    assert ours.inducing_ == 120


@pytest.mark.parametrize("columns", [3, 40])
def test_no_other_width_signal_and_noise_near_by_are_likelier(columns):
    X, y = curve(D=columns)
    ours = GaussianProcess().fit(X, y)
    best = reference(ours, X, y, optimizer="fmin_l_bfgs_b")
    assert best.log_marginal_likelihood_value_ - ours.bound_ < 0.01


def test_the_sparse_bound_and_predictions_are_those_of_titsias_written_out():
    X, y = curve(n=90)
    new = curve(n=15, seed=1)[0]
    ours = GaussianProcess(most_exact=50, inducing=30, seed=4).fit(X, y)
    Z = choose_landmarks(X, 30, seed=4)

    def kernel(a, b):
        return ours.signal_variance_ * np.exp(-0.5 * squared_distances(a, b) / ours.width_**2)

    noise, centred = ours.noise_variance_, y - y.mean()
    Kzz, Kzx, Kzn = kernel(Z, Z) + 1e-9 * ours.signal_variance_ * np.eye(30), kernel(Z, X), kernel(Z, new)
    Q = Kzx.T @ np.linalg.solve(Kzz, Kzx)
    bound = multivariate_normal(np.zeros(90), Q + noise * np.eye(90)).logpdf(centred)
    bound -= (90 * ours.signal_variance_ - np.trace(Q)) / (2 * noise)
    assert ours.bound_ == pytest.approx(bound, abs=1e-3)
    inner = Kzz + Kzx @ Kzx.T / noise
    mean = y.mean() + Kzn.T @ np.linalg.solve(inner, Kzx @ centred) / noise
    left = ours.signal_variance_ - (Kzn * np.linalg.solve(Kzz, Kzn)).sum(axis=0)
    variance = left + (Kzn * np.linalg.solve(inner, Kzn)).sum(axis=0) + noise
    found = ours.predict_both(new)
    np.testing.assert_allclose(found[0], mean, rtol=1e-5)
    np.testing.assert_allclose(found[1], np.sqrt(variance), rtol=1e-5)
    assert ours.inducing_ == 30


def test_the_sparse_bound_is_below_the_likelihood_and_rises_to_it_with_inducing_points():
    X, y = curve(n=150)
    bounds = [GaussianProcess(most_exact=0, inducing=m).fit(X, y).bound_ for m in (5, 20, 60, 150)]
    exact = GaussianProcess().fit(X, y).bound_
    assert bounds[0] < bounds[1] < bounds[2] <= exact + 1e-6
    assert bounds[3] == pytest.approx(exact)


def test_noise_is_found_and_spread_grows_away_from_the_data():
    X, y = curve(n=400, D=2, seed=3)
    process = GaussianProcess().fit(X, y)
    assert np.sqrt(process.noise_variance_) == pytest.approx(3, abs=0.4)
    near, far = process.predict_both(np.array([[0.0, 0.0], [9.0, 9.0]]))[1]
    assert near < 3.8
    assert far > 2 * near


def test_scans_with_one_vector_and_wide_kernels_are_no_obstacle():
    X, y = curve(n=60)
    X[1::2] = X[::2]
    process = GaussianProcess().fit(X, y)
    assert np.isfinite([*process.predict(X), process.bound_]).all()
    features = kernel_map(X, 1e4).features(X)
    np.testing.assert_allclose(features.T @ features, np.ones((60, 60)), atol=1e-5)
