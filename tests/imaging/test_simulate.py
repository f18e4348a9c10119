"""The simulator's planted answers, each checked against what the images themselves show."""

import pickle

import numpy as np
import pytest
from nilearn.datasets import load_mni152_gm_template
from nilearn.image import resample_img
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from brainage.errors import ConfigError
from brainage.imaging.simulate import PETALIA_LOG, BrainSimulator, Scan
from brainage.imaging.simulated_people import Site, plan_sites, scans, simulate_people
from brainage.imaging.simulated_regions import ATLASES, RegionSimulator, region_names


@pytest.fixture(scope="module")
def brains():
    return BrainSimulator(6.0, seed=7)


@pytest.fixture(scope="module")
def clean():
    """No site distortion, so that what is left is biology, person and noise."""
    return BrainSimulator(6.0, seed=7, site_effect=0.0)


def scan(person="p", site="1", sex="F", years=40.0, severity=0.0, session="1"):
    return Scan(person, session, site, sex, years, severity)


def coordinates(simulator):
    """x, y, z in mm of every voxel, from the affine alone."""
    ijk = np.moveaxis(np.indices(simulator.shape), 0, -1)
    return np.moveaxis(ijk @ simulator.affine[:3, :3].T + simulator.affine[:3, 3], -1, 0)


def log_ratio(simulator, after, before, centre_mm, radius_mm=9.0):
    """Mean log of grey matter, `after` over `before`, in a ball of grey matter."""
    x, y, z = coordinates(simulator)
    ball = (x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2 < radius_mm**2
    ball &= simulator.templates.grey > 0.1
    return float(np.mean(np.log(simulator.grey_matter(after)[ball] / simulator.grey_matter(before)[ball])))


def test_an_image_depends_on_seed_and_scan_alone(brains):
    people = [scan("a"), scan("b"), scan("a", session="2")]
    forward = [brains.grey_matter(who) for who in people]
    fresh = pickle.loads(pickle.dumps(BrainSimulator(6.0, seed=7)))
    backward = [fresh.grey_matter(who) for who in people[::-1]][::-1]
    for first, second in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.abs(forward[0] - forward[1]).max() > 0.01
    assert np.abs(forward[0] - BrainSimulator(6.0, seed=8).grey_matter(people[0])).max() > 0.01


def test_two_scans_of_a_person_are_more_alike_than_two_people(clean):
    first, again, other = (clean.log_jacobian(who) for who in (scan("a"), scan("a", session="2"), scan("b")))
    assert np.std(first - again) < 0.3 * np.std(first - other)


def test_the_grid_is_ras_and_holds_the_template_where_nilearn_puts_it(brains):
    assert np.all(np.diag(brains.affine)[:3] > 0)
    template = load_mni152_gm_template(resolution=1)
    reference = resample_img(
        template, brains.affine, brains.shape, interpolation="linear", force_resample=True, copy_header=True
    )
    image = brains.grey_matter(scan())
    agreement = np.corrcoef(reference.get_fdata().ravel(), image.ravel())[0, 1]
    assert agreement > 0.85
    for axes in ((1,), (2,)):
        assert np.corrcoef(reference.get_fdata().ravel(), np.flip(image, axes).ravel())[0, 1] < agreement - 0.2


def test_every_brain_has_the_planted_right_frontal_and_left_occipital_excess(brains):
    x, y, z = coordinates(brains)
    frontal, occipital = (y > 25) & (z > -20), y < -80

    def excess(image, lobe):  # log right over left
        return np.log(image[lobe & (x > 12)].sum() / image[lobe & (x < -12)].sum())

    images = [brains.grey_matter(scan(f"p{number}", site=str(number))) for number in range(20)]
    tilt = np.array([excess(image, frontal) - excess(image, occipital) for image in images])
    assert (tilt > 0.05).all()
    assert tilt.mean() == pytest.approx(2 * PETALIA_LOG, abs=0.06)
    mirrored = np.array([excess(image[::-1], frontal) - excess(image[::-1], occipital) for image in images])
    assert (mirrored < -0.05).all()


def test_grey_matter_falls_with_biological_age(clean):
    years = np.linspace(20, 85, 40)
    people = [scan(f"p{age:.1f}", years=age) for age in years]
    shares = [clean.grey_matter(who).sum() * clean.voxel_ml / clean.tiv_ml(who) for who in people]
    assert np.corrcoef(years, shares)[0, 1] < -0.9


def test_ten_years_take_the_documented_share(clean):
    young, old = scan(years=30), scan(years=40)
    assert log_ratio(clean, old, young, (0, -75, -30)) == pytest.approx(-0.020, abs=0.008)  # cerebellum: global only
    assert log_ratio(clean, old, young, (30, 40, 25)) == pytest.approx(-0.055, abs=0.012)  # frontal: 0.2 + 0.35 %


def test_disease_takes_the_hippocampus_and_leaves_the_cerebellum(clean):
    well, ill = scan(years=75), scan(years=75, severity=1.0)
    for side in (-1, 1):
        assert log_ratio(clean, ill, well, (side * 27, -22, -16)) < -0.15
    assert log_ratio(clean, ill, well, (0, -75, -30)) == pytest.approx(0.0, abs=0.005)


def test_a_site_changes_the_image_and_no_site_effect_leaves_only_noise(brains, clean):
    for simulator, low, high in ((brains, 0.01, 1.0), (clean, 0.0, 0.003)):
        grey = simulator.templates.grey > 0.3
        one, two = (simulator.grey_matter(scan(site=site))[grey] for site in ("1", "2"))
        blocks = np.log(one / two)[: len(one) // 500 * 500].reshape(-1, 500).mean(1)
        assert low <= np.abs(blocks).mean() <= high


def test_t1_is_a_stripped_brain_with_white_matter_brightest_and_atrophy_darkening_it(clean):
    image, brain = clean.t1(scan(years=25)), clean.templates.brain
    assert (image[brain] > 0).all()
    assert (image[~brain] == 0).all()
    white, grey = clean.templates.white > 0.8, clean.templates.grey > 0.7
    assert image[white].mean() > 1.2 * image[grey].mean()
    assert clean.t1(scan(years=85))[grey].mean() < image[grey].mean() * 0.97


def test_ages_are_like_openbhb_and_confounded_with_site():
    people = simulate_people(plan_sites(2000, seed=3), seed=3)
    ages = people["age_years"]
    assert 22 < ages.mean() < 30
    assert 12 < ages.std() < 18
    assert ages.between(6, 88).all()
    within = ages - ages.groupby(people["site"]).transform("mean")
    assert within.var() < 0.4 * ages.var()
    assert people["participant_id"].is_unique


@pytest.mark.parametrize("subjects", [24, 100, 400, 5330])
def test_sites_sum_to_the_cohort_and_are_large_enough_to_train_on(subjects):
    sites = plan_sites(subjects, seed=1)
    assert sum(site.people for site in sites) == subjects
    inside = [site for site in sites if not site.external]
    assert min(site.people for site in inside) >= 10
    assert any(site.external for site in sites)
    if subjects >= 400:
        assert 20 <= len(inside) <= 64
        assert len(sites) - len(inside) == 4


def test_visits_keep_the_person_and_plant_progression_and_conversion():
    site = Site("1", 200, mean_age_years=72, sd_age_years=5)
    people = simulate_people([site], seed=5, mci_rate=0.4, ad_rate=0.2, visits=4)
    truth = people["age_years"].add(people["acceleration_years"]).add(8 * people["disease_severity"])
    np.testing.assert_allclose(people["biological_age_years"], truth)
    by_person = people.groupby("participant_id")
    assert (by_person["acceleration_years"].nunique() == 1).all()
    assert np.allclose(by_person["age_years"].agg(np.ptp), 3.0)
    first, last = by_person["diagnosis"].first(), by_person["diagnosis"].last()
    assert first.value_counts(normalize=True).to_dict() == pytest.approx({"CN": 0.4, "MCI": 0.4, "AD": 0.2}, abs=0.12)
    assert ((first == "MCI") & (last == "AD")).sum() > 10  # converters
    assert ((first == "MCI") & (last == "MCI")).sum() > 5  # stable
    assert (last[first == "CN"] == "CN").all()


def test_regions_measure_the_same_anatomy(clean):
    regions, who = RegionSimulator(clean), scan(years=70)
    grey = clean.grey_matter(who)
    volumes = regions.vbm(who, grey)
    x, _, _ = coordinates(clean)
    assert volumes[:142].sum() == pytest.approx(grey[clean.templates.brain & (x != 0)].sum() * clean.voxel_ml, rel=1e-4)
    assert (volumes > 0).all()
    names = region_names("vbm_roi")
    ill = regions.vbm(who, clean.grey_matter(who._replace(disease_severity=1.0)))
    loss = dict(zip(names, np.log(ill / volumes), strict=True))
    assert min(loss, key=loss.get) in ("lHip_GM_Vol", "rHip_GM_Vol")
    left = np.array([name.startswith("l") for name in names[:142]])
    one_side = np.where(x < 0, grey, 0).sum() * clean.voxel_ml
    assert volumes[:142][left].sum() == pytest.approx(one_side, rel=1e-3)


@pytest.mark.parametrize("atlas", ["desikan", "destrieux"])
def test_cortical_tables_have_real_units_and_thin_with_age(clean, atlas):
    regions = RegionSimulator(clean)
    young, old = regions.cortex(scan(years=20), atlas), regions.cortex(scan(years=80), atlas)
    assert young.shape == (7, 2 * ATLASES[atlas]) == (7, len(region_names(atlas)))
    area_mm2, volume_mm3, thickness_mm = young[:3]
    assert 60_000 < area_mm2[: ATLASES[atlas]].sum() < 120_000
    assert 2.2 < thickness_mm.mean() < 2.9
    np.testing.assert_allclose(volume_mm3, area_mm2 * thickness_mm, rtol=0.2)
    assert old[2].mean() < 0.95 * thickness_mm.mean()


@pytest.mark.parametrize("seed", [1, 2])
def test_pca_and_ridge_find_age_at_seen_sites_and_stumble_at_unseen_ones(seed):
    simulator = BrainSimulator(8.0, seed)
    people = simulate_people(plan_sites(300, seed=seed), seed=seed)
    ages, external = people["age_years"].to_numpy(), people["external"].to_numpy()
    inside = simulator.templates.grey > 0.05
    images = np.stack([simulator.grey_matter(who)[inside] for who in scans(people)])
    tested = ~external & (np.arange(len(people)) % 5 == 0)
    train = ~external & ~tested
    pca = PCA(80, random_state=0).fit(images[train])
    ridge = RidgeCV(10.0 ** np.arange(-4, 5)).fit(pca.transform(images[train]), ages[train])
    error = np.abs(ridge.predict(pca.transform(images)) - ages)
    mean_predictor = np.abs(ages - ages[train].mean())
    assert error[tested].mean() < 0.65 * mean_predictor[tested].mean()
    assert error[tested].mean() > 2.0  # nothing can undo a person's acceleration of sd 3 years
    assert error[external].mean() > 1.3 * error[tested].mean()


def test_values_that_cannot_be_simulated_are_refused():
    with pytest.raises(ConfigError, match="subjects=10"):
        plan_sites(10, seed=0)
    with pytest.raises(ConfigError, match=r"spacing_mm=0\.5"):
        BrainSimulator(0.5, seed=0)
    with pytest.raises(ConfigError, match=r"ad_rate=0\.7"):
        simulate_people(plan_sites(40, seed=0), seed=0, mci_rate=0.5, ad_rate=0.7)
