# mypy: ignore-errors
# (numba gives these functions their types)
"""Vectors of eight float32 in compiled code.

The compiler makes vectors of plain loops by itself, but for the sweeps over the voxels that is not enough: rows are
short, and before each of them it would check at run time whether any of a dozen arrays overlap. A loop written with
these functions says itself what is done eight at a time. All arithmetic is lane by lane with one rounding, so a result
depends neither on where a vector begins nor on the processor.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

from n4flow.fit.compiled import row_kernel

LANES = 8

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_INDEX = ir.IntType(32)


class _Vector(types.Type):
    def __init__(self):
        super().__init__(name="float32x8")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _FLOATS)


vector = _Vector()


def _address(context, builder, array_type, array, index):
    return builder.gep(arrayobj.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def load(context, array, index):
    """Return array[index : index + 8]."""

    def build(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], *values)
        return builder.load(builder.bitcast(address, _FLOATS.as_pointer()), align=4)

    return vector(array, index), build


@intrinsic
def store(context, array, index, value):
    """array[index : index + 8] = value."""

    def build(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], *values[:2])
        builder.store(values[2], builder.bitcast(address, _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@intrinsic
def store_whole(context, array, index, value):
    """array[index : index + 8] = the values without their fractions, as uint16."""

    def build(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], *values[:2])
        whole = builder.trunc(builder.fptosi(values[2], _INTS), _SHORTS)
        builder.store(whole, builder.bitcast(address, _SHORTS.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@intrinsic
def look_up(context, table, array, index):
    """Return table[array[index : index + 8]]; the array is of uint16."""

    def build(context, builder, signature, values):
        kind = signature.args[0]
        data = arrayobj.make_array(kind)(context, builder, values[0]).data
        first = _address(context, builder, signature.args[1], *values[1:])
        result = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            place = builder.load(builder.gep(first, [ir.Constant(_INDEX, lane)]))
            item = builder.load(builder.gep(data, [builder.zext(place, ir.IntType(64))]))
            result = builder.insert_element(result, item, ir.Constant(_INDEX, lane))
        return result

    return vector(table, array, index), build


@intrinsic
def splat(context, number):
    """Return eight times a float32."""

    def build(context, builder, signature, values):
        one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), values[0], ir.Constant(_INDEX, 0))
        return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))

    return vector(types.float32), build


@intrinsic
def lane(context, value, number):
    """Return one lane as a float32."""

    def build(context, builder, signature, values):
        return builder.extract_element(values[0], builder.trunc(values[1], _INDEX))

    return types.float32(value, types.int64), build


@intrinsic
def add(context, a, b):
    """Return a + b."""
    return vector(a, b), lambda _context, builder, _signature, values: builder.fadd(*values)


@intrinsic
def subtract(context, a, b):
    """Return a - b."""
    return vector(a, b), lambda _context, builder, _signature, values: builder.fsub(*values)


@intrinsic
def multiply(context, a, b):
    """Return a b."""
    return vector(a, b), lambda _context, builder, _signature, values: builder.fmul(*values)


@intrinsic
def fma(context, a, b, c):
    """Return a b + c with one rounding."""

    def build(_context, builder, _signature, values):
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), values)

    return vector(a, b, c), build


@intrinsic
def where_below(context, a, limit, value, other):
    """Return `value` where a < limit, else `other`."""

    def build(_context, builder, _signature, values):
        return builder.select(builder.fcmp_ordered("<", values[0], values[1]), values[2], values[3])

    return vector(a, limit, value, other), build


@intrinsic
def least(context, a, b):
    """Return the lower of a and b."""

    def build(_context, builder, _signature, values):
        return builder.select(builder.fcmp_ordered("<", *values), *values)

    return vector(a, b), build


@intrinsic
def greatest(context, a, b):
    """Return the higher of a and b."""

    def build(_context, builder, _signature, values):
        return builder.select(builder.fcmp_ordered(">", *values), *values)

    return vector(a, b), build


@row_kernel
def sum_of(value):
    """Return the sum of a vector's lanes, in order."""
    total = lane(value, 0)
    for k in range(1, LANES):
        total += lane(value, k)
    return total


@row_kernel
def lowest_of(value):
    """Return the lowest of a vector's lanes."""
    low = lane(value, 0)
    for k in range(1, LANES):
        low = min(low, lane(value, k))
    return low


@row_kernel
def highest_of(value):
    """Return the highest of a vector's lanes."""
    high = lane(value, 0)
    for k in range(1, LANES):
        high = max(high, lane(value, k))
    return high
