"""Every function that takes a dask array: nothing is read at the call, and the result is NumPy's to the bit."""

from functools import cache

import numpy as np
import pytest

import n4flow
from n4flow.errors import InputError

da = pytest.importorskip("dask.array")

SHAPE = (24, 61, 53)
RNG = np.random.default_rng(0)
VOLUME = RNG.gamma(4, 300, SHAPE).astype(np.uint16)
VOLUME[:, :8] = RNG.normal(60, 8, (24, 8, 53)).clip(1)
VOLUME[:, :, 50:] = 0
TISSUE = np.zeros(SHAPE, bool)
TISSUE[:, 10:48, 5:45] = True
AGAROSE = np.zeros(SHAPE[1:], bool)
AGAROSE[:8] = True
FIELD = np.exp(RNG.normal(0, 0.2, SHAPE)).astype(np.float32)


@cache
def bias():
    return n4flow.fit_bias(VOLUME, TISSUE, iters=(2,), backend="cpu")


FUNCTIONS = {
    "apply_bias_field": lambda vol, of: n4flow.apply_bias_field(vol, of(FIELD)),
    "BiasField.apply": lambda vol, _of: bias().apply(vol),
    "normalize_volume": lambda vol, of: n4flow.normalize_volume(vol, of(AGAROSE)),
    "apply_histogram_matching": lambda vol, of: n4flow.apply_histogram_matching(vol, 4, 64, 30.0, mask=of(TISSUE)),
    "apply_zprofile_smoothing": lambda vol, of: n4flow.apply_zprofile_smoothing(vol, of(TISSUE), 2.0),
    "harmonize": lambda vol, of: n4flow.harmonize(vol, of(TISSUE), 4)[0],
}


def all_of(result):
    return result if isinstance(result, tuple) else (result,)


@cache
def expected(name):
    return all_of(FUNCTIONS[name](VOLUME, np.asarray))


@pytest.mark.parametrize(
    ("chunks", "lazy_masks"),
    [((24, 61, 53), True), ((5, 7, 11), False), ((1, 20, 53), True), (((1, 3, 0, 20), (1, 60), (52, 1)), True)],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dask_stays_lazy_and_is_the_same_to_the_bit(name, chunks, lazy_masks):
    read = []
    lazy = da.from_array(VOLUME, chunks=chunks).map_blocks(lambda block: (read.append(1), block)[1], dtype=VOLUME.dtype)
    read.clear()
    found = FUNCTIONS[name](lazy, lambda array: da.from_array(array, chunks=9) if lazy_masks else array)
    assert not read
    for ours, theirs in zip(all_of(found), expected(name), strict=True):
        assert isinstance(ours, da.Array)
        assert ours.ndim == 1 or ours.chunks == lazy.chunks
        assert ours.dtype == theirs.dtype == np.float32
        assert np.array_equal(ours.compute(scheduler="threads", num_workers=2), theirs)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "ias" not in name])  # a field has a shape to compare
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lazy: lazy[0], r"must be a \(Z, Y, X\) array of real numbers, not empty, got \(61, 53\)"),
        (lambda lazy: lazy[None], r"must be a \(Z, Y, X\) array of real numbers, not empty, got \(1, 24, 61, 53\)"),
        (lambda lazy: lazy[:0], "must be a .* not empty"),
        (lambda lazy: lazy.astype(complex), "must be a .* of real numbers, .* complex128"),
        (lambda lazy: lazy[lazy[:, 20, 20] > 5], "with sizes not known yet; call its compute_chunk_sizes"),
    ],
)
def test_what_is_no_volume_is_refused_at_the_call(name, change, message):
    with pytest.raises(InputError, match=message):
        FUNCTIONS[name](change(da.from_array(VOLUME, chunks=20)), np.asarray)
