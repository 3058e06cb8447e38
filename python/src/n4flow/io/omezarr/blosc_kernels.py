# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loop that reads chunks of a Zarr array: bytes, codec and copy, without the interpreter in between.

With it, threads that decode do not take turns: what the interpreter does to one chunk takes as long as the codec.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from n4flow.compute.numba_cache import njit
from n4flow.io.omezarr.blosc_chunks import AXES, FILE, HIGH, LEFT_OUT, LOW, PLACE, SIZE, TARGET

WELL, UNREAD, DAMAGED = range(3)  # what became of a chunk
HEADER = 16  # bytes of Blosc before its blocks: the sizes decoded and encoded are little-endian, at 4 and at 12


def _calling(result, *parameters):
    """Return an LLVM function type."""
    return ir.FunctionType(result, parameters)


_WORD, _INT, _PLACE = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()


@intrinsic
def _read(context, function, file, place, size, offset):
    """Call pread(file, place, size, offset) at an address."""

    def build(context, builder, signature, values):
        address, file, place, size, offset = values
        kind = _calling(_WORD, _INT, _PLACE, _WORD, _WORD)
        called = builder.inttoptr(address, kind.as_pointer())
        place = builder.inttoptr(place, _PLACE)
        return builder.call(called, [builder.trunc(file, _INT), place, size, offset])

    return types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), build


@intrinsic
def _decompress(context, function, source, target, size):
    """Call blosc_decompress_ctx(source, target, size, 1) at an address."""

    def build(context, builder, signature, values):
        address, source, target, size = values
        called = builder.inttoptr(address, _calling(_INT, _PLACE, _PLACE, _WORD, _INT).as_pointer())
        source, target = (builder.inttoptr(place, _PLACE) for place in (source, target))
        return builder.sext(builder.call(called, [source, target, size, _INT(1)]), _WORD)

    return types.int64(types.int64, types.int64, types.int64, types.int64), build


@intrinsic
def _copy(context, target, source, size):
    """Copy bytes from one address to another."""

    def build(context, builder, signature, values):
        kind = _calling(ir.VoidType(), _PLACE, _PLACE, _WORD, ir.IntType(1))
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.memcpy.p0i8.p0i8.i64")
        target, source = (builder.inttoptr(place, _PLACE) for place in values[:2])
        builder.call(function, [target, source, values[2], ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@njit(nogil=True, cache=True, error_model="numpy")
def _little(payload, at):
    """Return four little-endian bytes as a number."""
    number = np.int64(0)
    for i in range(4):
        number |= np.int64(payload[at + i]) << np.int64(8 * i)
    return number


@njit(nogil=True, cache=True, error_model="numpy")
def _place(values, a, b, c, d, e):
    """Return the address of a byte."""
    strides = values.strides
    return np.int64(values.ctypes.data) + a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3] + e


@njit(nogil=True, cache=True, error_model="numpy")
def decode_chunks(jobs, functions, payload, decoded, fill, out, found):
    """Put what chunks hold of a box into `out`.

    Parameters
    ----------
    jobs : (n, 3 + 3 AXES) int64 array
        See the columns that `chunks` names.
    functions : (int, int)
        Addresses of pread and blosc_decompress_ctx.
    payload : (bytes,) uint8 array
        At least as long as the longest of the chunks in their files.
    decoded : uint8 array with AXES axes
        A chunk: the last axis is bytes.
    fill : (bytes of a voxel,) uint8 array
        Value of voxels of chunks that are left out.
    out : uint8 array with AXES axes
        The box.
    found : (n,) int64 array
        Written: WELL, UNREAD or DAMAGED for each chunk.
    """
    read, decompress = np.int64(functions[0]), np.int64(functions[1])
    for n in range(jobs.shape[0]):
        job = jobs[n]
        size, done = job[SIZE], np.int64(0)
        found[n] = WELL
        straight = True  # the chunk is all of the box
        for axis in range(AXES):
            straight &= out.shape[axis] == decoded.shape[axis] == job[HIGH + axis] - job[LOW + axis]
        into = out if straight else decoded
        if size != LEFT_OUT:
            while done < size:
                more = _read(read, job[FILE], np.int64(payload.ctypes.data) + done, size - done, job[PLACE] + done)
                if more <= 0:
                    break
                done += more
            if done < size:
                found[n] = UNREAD
                continue
            good = size >= HEADER and _little(payload, 4) == into.size and _little(payload, 12) == size
            place = np.int64(into.ctypes.data)
            if not good or _decompress(decompress, np.int64(payload.ctypes.data), place, into.size) != into.size:
                found[n] = DAMAGED
                continue
            if straight:
                continue
        low, high, to = job[LOW:HIGH], job[HIGH:TARGET], job[TARGET:]
        width = high[4] - low[4]
        for a in range(high[0] - low[0]):
            for b in range(high[1] - low[1]):
                for c in range(high[2] - low[2]):
                    source = _place(decoded, low[0] + a, low[1] + b, low[2] + c, low[3], low[4])
                    target = _place(out, to[0] + a, to[1] + b, to[2] + c, to[3], to[4])
                    for d in range(high[3] - low[3]):
                        if size != LEFT_OUT:
                            _copy(target, source, width)
                        else:
                            row = out[to[0] + a, to[1] + b, to[2] + c, to[3] + d, to[4] : to[4] + width]
                            for i in range(width):
                                row[i] = fill[i % fill.size]
                        source += decoded.strides[3]
                        target += out.strides[3]
