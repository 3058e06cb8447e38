"""The anatomy of the phantom: a folded brain written down as a function of position.

Everything is a formula of the position (w, v, u) along the brain's axis, downwards and to the side, in units of
half the brain's width. So each voxel can be computed by itself, at any resolution and on planes of any tilt.

Depth below the brain's surface comes from a smooth union of ellipsoids (hemispheres, temporal lobes, brain
stem). Sulci are sheets: zero sets of a noise that depends on the direction from the middle of a hemisphere, so
that they stand upright on the surface, down to a depth that varies. The distance to the nearest sheet or to the
surface then gives the cortical ribbon, its layers and the gaps. Textures are gradient noise [1]_ in coordinates
that follow the tissue: fibres run along surfaces of equal depth, vessels are where two noises are zero at once.

References
----------
.. [1] K. Perlin, Improving noise, ACM Transactions on Graphics 21 (2002) 681-682.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from math import floor, sqrt

import numpy as np

from n4flow.compute.numba_cache import njit

# Length and height of the brain relative to its width.
LENGTH, HEIGHT = 1.35, 0.82

# The fields that `anatomy_plane` returns: four signed distances (positive inside, in units of half the brain's width),
# then four intensities relative to white matter.
FIELDS = ("tissue", "white", "nucleus", "ventricle", "grey_level", "white_level", "nucleus_level", "agarose_level")

# Mean intensity of each class relative to white matter.
LEVELS = {"agarose": 0.08, "ventricle": 0.05, "grey": 0.56, "white": 1.0, "nucleus": 0.74}
_AGAROSE, _VENTRICLE, _GREY, _NUCLEUS = LEVELS["agarose"], LEVELS["ventricle"], LEVELS["grey"], LEVELS["nucleus"]

# The gradients of improved noise: the edge midpoints of a cube, four of them twice to make sixteen.
_GRADIENTS = np.array(
    [
        (1, 1, 0), (-1, 1, 0), (1, -1, 0), (-1, -1, 0), (1, 0, 1), (-1, 0, 1), (1, 0, -1), (-1, 0, -1),
        (0, 1, 1), (0, -1, 1), (0, 1, -1), (0, -1, -1), (1, 1, 0), (0, -1, 1), (-1, 1, 0), (0, -1, -1),
    ],
    dtype=np.float64,
)  # fmt: skip


@njit(cache=True, nogil=True, inline="always")
def _corner(index, x, y, z):
    """Return the contribution of one corner of a noise cell."""
    g = _GRADIENTS[index & 15]
    return g[0] * x + g[1] * y + g[2] * z


@njit(cache=True, nogil=True)
def noise(perm, x, y, z):
    """Return gradient noise at one position: about -1 to 1, standard deviation 0.27, wavelength about 1.5.

    Parameters
    ----------
    perm : (512,) int64 array
        A permutation of 0..255, twice.
    x, y, z : float
        Position in cells.
    """
    fx, fy, fz = floor(x), floor(y), floor(z)
    i, j, k = int(fx) & 255, int(fy) & 255, int(fz) & 255
    x, y, z = x - fx, y - fy, z - fz
    sx = x * x * x * (x * (6 * x - 15) + 10)
    sy = y * y * y * (y * (6 * y - 15) + 10)
    sz = z * z * z * (z * (6 * z - 15) + 10)
    a, b = perm[i] + j, perm[i + 1] + j
    aa, ab, ba, bb = perm[a] + k, perm[a + 1] + k, perm[b] + k, perm[b + 1] + k
    n00 = _corner(perm[aa], x, y, z)
    n10 = _corner(perm[ba], x - 1, y, z)
    n01 = _corner(perm[ab], x, y - 1, z)
    n11 = _corner(perm[bb], x - 1, y - 1, z)
    near = (1 - sy) * (n00 + sx * (n10 - n00)) + sy * (n01 + sx * (n11 - n01))
    n00 = _corner(perm[aa + 1], x, y, z - 1)
    n10 = _corner(perm[ba + 1], x - 1, y, z - 1)
    n01 = _corner(perm[ab + 1], x, y - 1, z - 1)
    n11 = _corner(perm[bb + 1], x - 1, y - 1, z - 1)
    far = (1 - sy) * (n00 + sx * (n10 - n00)) + sy * (n01 + sx * (n11 - n01))
    return near + sz * (far - near)


@njit(cache=True, nogil=True, inline="always")
def _ellipsoid(w, v, u, rw, rv, ru):
    """Return the approximate depth below the surface of an ellipsoid, first order exact near the surface."""
    a, b, c = w / rw, v / rv, u / ru
    k0 = sqrt(a * a + b * b + c * c) + 1e-9
    k1 = sqrt((a / rw) ** 2 + (b / rv) ** 2 + (c / ru) ** 2) + 1e-9
    return (1 - k0) * k0 / k1


@njit(cache=True, nogil=True, inline="always")
def _smooth_max(a, b, width):
    """Return the larger of two distances, rounded over `width` where they are close."""
    h = max(width - abs(a - b), 0.0) / width
    return max(a, b) + 0.25 * h * h * width


@njit(cache=True, nogil=True, inline="always")
def _ramp(low, high, x):
    """Return 0 below `low`, 1 above `high`, and a smooth step between them."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@njit(cache=True, nogil=True)
def _fold(perm, w, v, side):
    """Return the noise whose zero set is the sulci, at a position relative to the middle of a hemisphere."""
    # Projection on the hemisphere's surface: the sheets then stand upright. The 0.55 keeps some of the depth,
    # which bends them.
    r = sqrt((w / 1.3) ** 2 + (v / 0.74) ** 2 + (side / 0.56) ** 2) + 1e-6
    s = 2.35 * (0.55 / max(r, 0.25) + 0.45)
    return noise(perm, 0.8 * s * w + 31.7, s * v + 7.3, s * side + 53.1)


@njit(cache=True, nogil=True)
def _structure(perm, w, v, u, texture, out):
    """Fill `out` (8,) with `FIELDS` at one position."""
    # The halves are mirror images except for a bend: they sample the same noise at slightly different positions.
    a = abs(u) + 0.16 * u
    bend_v = 0.17 * noise(perm, 1.4 * w + 3.1, 1.4 * v + 11.7, 1.4 * a + 5.9)
    bend_a = 0.17 * noise(perm, 1.4 * w + 71.3, 1.4 * v + 1.7, 1.4 * a + 23.9)
    v, a = v + bend_v, abs(u) + bend_a * min(1.0, 3 * abs(u))
    hemisphere = _ellipsoid(w, v + 0.05, a - 0.41, LENGTH, 0.74, 0.57)
    temporal = _ellipsoid(w - 0.12, v - 0.42, a - 0.55, 0.85, 0.33, 0.36)
    stem = _ellipsoid(w - 0.55, v - 0.30, a, 1.30, 0.42, 0.38)
    mantle = _smooth_max(hemisphere, temporal, 0.10)
    depth = _smooth_max(mantle, stem, 0.08)
    grain = noise(perm, 19 * w + 2.3, 19 * v + 8.7, 19 * u + 4.1)
    out[7] = _AGAROSE * (1 + texture * (0.30 * noise(perm, 9 * w + 3.9, 9 * v, 9 * u) + 0.16 * grain))
    if depth < -0.08:  # agarose, farther from the surface than a cell of the lattice that this is interpolated on
        out[0], out[1], out[2], out[3] = depth, depth, depth, depth
        out[4], out[5], out[6] = _GREY, 1.0, _NUCLEUS
        return
    cortex = _ramp(-0.02, 0.14, mantle - stem + 0.10) * _ramp(0.14, 0.24, a + max(0.10 - v, 0.0))

    # Sulci: distance to the sheet in its plane, and beyond its lower end.
    side, step = a - 0.36 + 0.04 * u, 1e-3
    lower = (0.30 + 0.34 * noise(perm, 1.7 * w + 9.1, 1.7 * v + 43.3, 1.7 * a + 17.1)) * cortex
    sulcus = depth
    if lower > 0.03:
        f = _fold(perm, w, v, side)
        dw = _fold(perm, w + step, v, side) - f
        dv = _fold(perm, w, v + step, side) - f
        du = _fold(perm, w, v, side + step) - f
        sheet = abs(f) * step / sqrt(dw * dw + dv * dv + du * du + 1e-9)
        below = max(depth - lower, 0.0)
        sulcus = sqrt(sheet * sheet + below * below)
    # The fissure between the hemispheres ends at the white bridge below it.
    bridge = -0.27 + 0.10 * w * w
    below = max(v - bridge, 0.0)
    fissure = sqrt(a * a + below * below)
    pial = min(depth, min(sulcus, fissure))
    gap = 0.008 + 0.08 * max(0.06 - depth, 0.0)

    # Ventricles: a curved slit in each hemisphere, and a straight one in the middle of the stem.
    curve = a - 0.13 - 0.9 * (v + 0.22) ** 2
    lateral = _ellipsoid(0.55 * (w - 0.05), v + 0.10, curve, 0.42, 0.19, 0.055 + 0.05 * _ramp(-0.1, 0.8, w))
    third = _ellipsoid(w - 0.15, v - 0.30, a, 0.55, 0.16, 0.028)
    ventricle = max(lateral, third)

    # Deep nuclei; the stem carries islands of grey matter between its tracts.
    slow = noise(perm, 2.6 * w + 13.7, 2.6 * v + 29.9, 2.6 * a + 3.3)
    striatum = _ellipsoid(w + 0.15, v - 0.02, a - 0.34 - 0.25 * v, 0.75, 0.23, 0.13)
    thalamus = _ellipsoid(w - 0.30, v - 0.20, a - 0.16, 0.60, 0.17, 0.125)
    islands = min(0.30 * (slow - 0.10), stem - 0.05)
    nucleus = max(max(striatum, thalamus), islands)

    thickness = 0.088 * (1 + 0.5 * slow) * max(cortex, 0.12)
    out[0] = pial - gap
    out[1] = pial - gap - thickness
    out[2] = min(nucleus, min(pial - 0.10, -ventricle - 0.012))
    out[3] = ventricle

    # Intensities. Vessels are dark tubes; layers follow the ribbon; fibres follow the depth.
    v1 = noise(perm, 5.5 * w + 101.3, 5.5 * v + 57.1, 5.5 * u + 21.7)
    v2 = noise(perm, 5.5 * w + 19.9, 5.5 * v + 131.1, 5.5 * u + 77.7)
    vessel = max(0.0, 1 - (v1 * v1 + v2 * v2) / 0.0028)
    along = 4.0 * noise(perm, 2.1 * w + 61.3, 2.1 * v + 37.7, 2.1 * u + 15.9)
    fibre = noise(perm, 26 * min(depth, sulcus + 0.1) + along, 5 * w + 6 * u, 7 * v - 2 * u)
    bundle = max(0.0, noise(perm, 3 * w + 5 * a, 21 * v + 6 * w, 21 * u) - 0.12)
    layer = min(max((pial - gap) / thickness, 0.0), 1.0)
    stripe = 0.10 * max(0.0, 1 - ((layer - 0.58) / 0.10) ** 2) - 0.22 * max(0.0, 1 - layer / 0.22)
    stripe += 0.10 * (layer - 0.5)
    shade = 0.12 * slow
    dark = 1 - 0.55 * vessel * texture
    out[4] = _GREY * (1 + texture * (0.16 * grain + stripe * min(1.0, cortex) + 0.6 * shade)) * dark
    out[5] = (1 + texture * (0.26 * fibre + 0.08 * grain + 0.5 * shade)) * dark
    out[6] = _NUCLEUS * (1 + texture * (0.14 * grain + 0.75 * bundle - 0.05 + 0.5 * shade)) * dark


@njit(cache=True, nogil=True)
def anatomy_plane(perm, w0, w_x, v0, v_y, u0, u_x, texture, out):
    """Evaluate the anatomy on the lattice of one plane.

    Parameters
    ----------
    perm : (512,) int64 array
        Permutation table of `noise`.
    w0, v0, u0 : float
        Position of sample (0, 0), in units of half the brain's width.
    w_x, v_y, u_x : float
        Change of w and u from one sample to the next along X (a tilted plane changes both), and of v along Y.
    texture : float
        Factor on every texture inside a class; 0 gives flat classes.
    out : (8, y, x) float32 array
        Filled with `FIELDS`.
    """
    values = np.empty(8)
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            _structure(perm, w0 + w_x * x, v0 + v_y * y, u0 + u_x * x, texture, values)
            for field in range(8):
                out[field, y, x] = values[field]


@njit(cache=True, nogil=True, inline="always")
def _scramble(value):
    """Return well-mixed bits of a 64-bit counter (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def image_plane(
    fields, lattice, step, edge, footprint, white, factor, dark, speckle, key, torn, integer, high,
    observed, truth, bias, labels,
):  # fmt: skip
    """Image one plane: interpolate the anatomy, mix the classes, distort.

    Parameters
    ----------
    fields : (8, y, x) float32 array
        `anatomy_plane` on every `step`-th voxel, and one sample beyond the last.
    lattice : (y, x) float32 array
        Bias field on the same samples.
    step : int
        Voxels between samples.
    edge : float
        Width over which classes pass into each other (partial volume), in units of half the brain's width.
    footprint : (Y, 2) int array
        First and stop column of the mosaic in every row.
    white, factor, dark : float32
        Intensity of white matter, brightness of the plane, additive level.
    speckle : float32 array
        One value, or 2 to the 14 quantiles.
    key : uint64
        Start of the plane's random numbers; voxel i uses number i.
    torn : bool
        Whether the upper right part shows agarose instead of what was there.
    integer : bool
        Whether `observed` is rounded; then at least 1 and at most `high`.
    high : float
        Largest value of `observed`.
    observed, truth, bias, labels : (Y, X) arrays
        Filled.
    """
    height, width = truth.shape
    n_cells = lattice.shape[1] - 1
    row = np.empty((9, n_cells * step), np.float32)  # one row of the lattices, interpolated to every voxel
    true_row = np.empty(width, np.float32)
    half, per_edge, per_step = np.float32(0.5), np.float32(1 / edge), np.float32(1 / step)
    zero, one = np.float32(0), np.float32(1)
    fluid, top = np.float32(_VENTRICLE), np.float32(high)
    golden = np.uint64(0x9E3779B97F4A7C15)
    for y in range(height):
        j, f = y // step, np.float32((y % step) * per_step)
        for c in range(9):
            upper = fields[c, j] if c < 8 else lattice[j]
            lower = fields[c, j + 1] if c < 8 else lattice[j + 1]
            left = upper[0] + f * (lower[0] - upper[0])
            for i in range(n_cells):
                right = upper[i + 1] + f * (lower[i + 1] - upper[i + 1])
                slope = (right - left) * per_step
                for k in range(step):
                    row[c, i * step + k] = left + np.float32(k) * slope
                left = right
        for x in range(width):
            value = row[4, x] + min(max(half + row[1, x] * per_edge, zero), one) * (row[5, x] - row[4, x])
            value += min(max(half + row[2, x] * per_edge, zero), one) * (row[6, x] - value)
            value += min(max(half + row[3, x] * per_edge, zero), one) * (fluid - value)
            true_row[x] = white * (row[7, x] + min(max(half + row[0, x] * per_edge, zero), one) * (value - row[7, x]))
        truth[y], bias[y] = true_row, row[8, :width]
        for x in range(width):
            tissue = 2 if row[3, x] > 0 else 5 if row[2, x] > 0 else 4 if row[1, x] > 0 else 3
            labels[y, x] = tissue if row[0, x] > 0 else 1
        if torn:
            for x in range(max(0, (width + 2 * y) // 3), width):
                true_row[x] = white * row[7, x]
                labels[y, x] = 1
        first, stop = footprint[y, 0], footprint[y, 1]
        labels[y, :first], labels[y, stop:] = 0, 0
        observed[y, :first], observed[y, stop:] = 0, 0
        for x in range(first, stop):
            seen = true_row[x] * row[8, x] * factor
            if speckle.size > 1:
                number = _scramble(key + golden * np.uint64(y * width + x + 1))
                seen *= speckle[number >> np.uint64(50)]
            seen += dark
            observed[y, x] = np.floor(min(max(seen + half, one), top)) if integer else seen
