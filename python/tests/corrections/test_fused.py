"""Corrections that follow each other voxel by voxel are one pass, on the host and on the GPU, to the same bits."""

import numpy as np
import pytest
from gpu_examples import phantom, some_recipe

from n4flow.corrections.base import Where
from n4flow.corrections.fused import groups
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError


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
