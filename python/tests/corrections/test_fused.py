"""Corrections that follow each other voxel by voxel are one pass, on the host and on the GPU, to the same bits."""

import numpy as np
import pytest
from gpu_examples import phantom, some_field

from n4flow.corrections.background import SpatialMeanBackground
from n4flow.corrections.base import Where
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.fused import groups
from n4flow.corrections.plane_gain import PlaneGain
from n4flow.corrections.plane_range import PlaneRange
from n4flow.corrections.recipe import Recipe
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.errors import InputError


def some_recipe(shape, seed=0):
    """Corrections of every kind, on planes of two sections and one that is in none."""
    rng = np.random.default_rng(seed)
    n_z = shape[0]
    fields = BiasCorrection(((0, 3, some_field((3, *shape[1:]))), (4, n_z, some_field((n_z - 4, *shape[1:]), seed=4))))
    lower = rng.uniform(20, 40, n_z).astype(np.float32)
    upper = lower + rng.uniform(100, 200, n_z).astype(np.float32)
    nothing = np.zeros(n_z, np.uint8)
    limits = PlaneRange(lower, upper, 180.0, nothing, nothing.astype(np.float32))
    knots_x = np.concatenate([[0.1, 0.2, 0.35, 0.8], [0.1, 0.15, 0.6]])
    knots_y = np.concatenate([[0.1, 0.25, 0.3, 0.9], [0.1, 0.2, 0.5]])
    number = np.array([0] * 3 + [-1] + [1] * (n_z - 4), np.int32)
    lookup = SectionLookup(0.1, number, nothing, np.array([0, 4, 7]), knots_x, knots_y)
    gain = PlaneGain(rng.uniform(0.8, 1.2, n_z).astype(np.float32), nothing == 0, 2.0)
    return [SpatialMeanBackground((3.0, 3.0)), fields, limits, lookup, gain]


@pytest.mark.parametrize("chosen", ["01234", "1234", "234", "13", "24", "12", "3", "1", "131"])
@pytest.mark.parametrize("start", [0, 2])
def test_corrections_that_follow_each_other_are_one_pass_to_the_same_bits(any_device, chosen, start):
    shape = (9, 30, 37)
    image = phantom(shape)[0]
    image.reshape(-1)[::50], image[3, 4, 5], image[5, 6, 7] = 0, np.nan, np.inf
    corrections = some_recipe(shape)
    recipe = Recipe([corrections[int(k)] for k in chosen])
    part = np.ascontiguousarray(image[start:, 3:28, 4:])
    where = Where(start, 3, 4, shape, part > 100)
    expected = recipe.apply_block(part.copy(), where)
    got = recipe.apply_block(any_device.asarray(part), where)
    same = np.array_equal if "0" not in chosen else np.allclose  # the background is CuPy's, summed in another order
    assert same(got.get(), expected, equal_nan=True)
    assert np.isnan(got.get()).sum() == 1


@pytest.mark.parametrize("chosen", ["01234", "1234", "234", "13", "24", "12", "131"])
@pytest.mark.parametrize("start", [0, 2])
def test_one_pass_on_the_host_gives_the_bits_of_one_correction_after_the_other(chosen, start):
    shape = (9, 30, 37)
    image = phantom(shape)[0]
    image.reshape(-1)[::50], image[3, 4, 5], image[5, 6, 7] = 0, np.nan, np.inf
    corrections = [some_recipe(shape)[int(k)] for k in chosen]
    part = np.ascontiguousarray(image[start:, 3:28, 4:])
    where = Where(start, 3, 4, shape, part > 100)
    expected = part.copy()
    for correction in corrections:
        expected = correction.apply(expected, where)
    assert np.array_equal(Recipe(corrections).apply_block(part.copy(), where), expected, equal_nan=True)
    assert not np.array_equal(expected, part, equal_nan=True)


def test_a_gain_without_its_mask_is_an_error_in_one_pass_too():
    shape = (9, 30, 37)
    recipe = Recipe(some_recipe(shape)[3:])
    with pytest.raises(InputError, match="give the block's tissue mask"):
        recipe.apply_block(phantom(shape)[0], Where(0, 0, 0, shape))


@pytest.mark.parametrize("chosen", ["1234", "12", "4"])
def test_a_recipe_through_the_gpu(any_device, small_blocks, chosen):
    image = (phantom()[0] * 10).astype(np.uint16)
    corrections = some_recipe(image.shape)
    recipe = Recipe([corrections[int(k)] for k in chosen])
    tissue = image > 1000 if "4" in chosen else None
    expected = recipe.apply(image[2:], 2, tissue=None if tissue is None else tissue[2:], shape=image.shape)
    got = recipe.apply(image[2:], 2, tissue=None if tissue is None else tissue[2:], shape=image.shape, gpu=True)
    assert type(got) is np.ndarray
    assert np.array_equal(got, expected)


def test_which_corrections_are_one_pass():
    background, field, limits, lookup, gain = some_recipe((9, 30, 37))
    assert groups([background, field, limits, lookup, gain]) == [[background], [field, limits, lookup, gain]]
    assert groups([field, field, limits, gain]) == [[field], [field, limits, gain]]
    assert groups([lookup, limits]) == [[lookup], [limits]]
    assert groups([]) == []
