import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainage.errors import ContractError
from brainage.imaging.contract import InputContract

VBM = InputContract(
    modality="cat12vbm_gm",
    kind="volume",
    shape=(1, 121, 145, 121),
    space="MNI152",
    spacing_mm=(1.5, 1.5, 1.5),
    origin_mm=(-90.0, -126.0, -72.0),
    axes="RAS",
    intensity="modulated grey matter",
    preprocessing={"segmentation": "CAT12 12.7"},
)
ROIS = InputContract(modality="thickness", kind="vector", shape=(3,), features=("lh", "rh", "mean"))


@pytest.mark.parametrize("contract", [VBM, ROIS])
def test_a_contract_survives_json_and_pickle(contract):
    plain = json.loads(json.dumps(contract.to_dict()))
    assert InputContract.from_dict(plain) == contract
    assert pickle.loads(pickle.dumps(contract)) == contract


def test_its_plain_form_holds_only_types_a_safe_checkpoint_may_hold():
    def types_of(value):
        if isinstance(value, dict):
            return {type(key) for key in value} | {t for v in value.values() for t in types_of(v)}
        return {t for v in value for t in types_of(v)} if isinstance(value, list) else {type(value)}

    assert types_of(VBM.to_dict()) <= {str, int, float}


def test_volumes_are_stored_in_fp16_and_vectors_in_fp32():
    assert VBM.dtype == np.float16
    assert ROIS.dtype == np.float32


def test_the_affine_takes_voxels_to_millimetres_in_ras():
    corner = VBM.affine @ [0, 0, 0, 1]
    far = VBM.affine @ [120, 144, 120, 1]
    assert corner.tolist() == [-90, -126, -72, 1]
    assert far.tolist() == [90, 90, 108, 1]  # x grows to the right, y to the front, z up


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (121, 145, 121)},
        {"spacing_mm": (1.5,)},
        {"axes": "LAS"},
    ],
)
def test_a_volume_without_grid_or_of_other_axes_is_refused(wrong):
    with pytest.raises(ContractError, match="a volume needs shape"):
        dataclasses.replace(VBM, **wrong)


def test_a_vector_needs_as_many_names_as_values_or_none():
    with pytest.raises(ContractError, match="found \\(3,\\) and 2 names"):
        dataclasses.replace(ROIS, features=("lh", "rh"))
    dataclasses.replace(ROIS, features=())


def test_an_unknown_key_is_refused():
    with pytest.raises(ContractError, match=r"\['depth'\]"):
        InputContract.from_dict({**VBM.to_dict(), "depth": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modality", "quasiraw"),
        ("shape", (1, 61, 73, 61)),
        ("space", "native"),
        ("spacing_mm", (1.5, 1.5, 1.6)),
        ("origin_mm", (-90.0, -126.0, -71.0)),
        ("intensity", "z-score"),
        ("preprocessing", {"segmentation": "CAT12 12.8"}),
    ],
)
def test_every_field_is_compared_and_a_refusal_names_it_with_both_values(field, value):
    other = dataclasses.replace(VBM, **{field: value})
    phrases = VBM.differences(other)
    assert len(phrases) == 1
    assert phrases[0].startswith(f"{field}: expected ")
    with pytest.raises(ContractError, match=f"predict: input does not fit the encoder: {field}: expected "):
        VBM.refuse_other(other, "predict")


def test_two_kinds_of_input_differ_in_everything_that_is_named():
    with pytest.raises(ContractError, match=r"modality: .*'thickness'.*kind: expected 'volume'.*shape: .*features"):
        VBM.refuse_other(ROIS, "predict")


def test_an_order_of_features_is_part_of_the_contract():
    assert ROIS.differences(dataclasses.replace(ROIS, features=("rh", "lh", "mean")))


@given(st.floats(-4e-4, 4e-4))
def test_rounding_of_a_header_is_no_difference(jitter):
    assert VBM.differences(dataclasses.replace(VBM, spacing_mm=(1.5 + jitter, 1.5, 1.5))) == []
    VBM.refuse_other(VBM, "predict")


def test_a_difference_of_a_hundredth_of_a_millimetre_is_one():
    assert VBM.differences(dataclasses.replace(VBM, spacing_mm=(1.51, 1.5, 1.5)))
    assert VBM.differences(dataclasses.replace(VBM, origin_mm=(-90.01, -126.0, -72.0)))


def test_long_values_are_cut_short_in_messages():
    names = tuple(f"region_{i}" for i in range(500))
    many = InputContract(modality="rois", kind="vector", shape=(500,), features=names)
    other = dataclasses.replace(many, features=names[::-1])
    (phrase,) = many.differences(other)
    assert len(phrase) < 200
    assert "(500 values)" in phrase
