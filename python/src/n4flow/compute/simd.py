# mypy: ignore-errors
# (numba gives these functions their types)
"""Vectors of sixteen float32 or float64 numbers (SIMD) in compiled code.

The compiler vectorizes plain loops by itself, but for sweeps over voxels that is not enough: rows are short, and before
each row it would check at run time whether any of a dozen arrays overlap. Loops that are written with these functions
are vectors by themselves; on processors with shorter vectors the compiler splits them. All arithmetic is lane by lane
with one rounding, so that results depend neither on the processor nor on the voxel at which a vector begins.
"""

from __future__ import annotations

from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

from n4flow.compute.jit import row_kernel

LANES = 16  # numbers in a vector

_INDEX = ir.IntType(32)


def _lanes(kind):
    """Return the LLVM type of a vector of a number type."""
    return ir.VectorType(kind, LANES)


_FLOATS, _INTS, _FLAGS = _lanes(ir.FloatType()), _lanes(_INDEX), _lanes(ir.IntType(1))
_DOUBLES = _lanes(ir.DoubleType())


class _Vector(types.Type):
    def __init__(self, number, lanes):
        self.lanes = lanes
        super().__init__(name=f"{number}x{LANES}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.lanes)


vector, doubles = _Vector(types.float32, _FLOATS), _Vector(types.float64, _DOUBLES)


def _vector_of(number):
    """Return the numba type of a vector of float32 or float64."""
    return doubles if number == types.float64 else vector


def _address(context, builder, array_type, array, index, kind=None):
    address = builder.gep(arrayobj.make_array(array_type)(context, builder, array).data, [index])
    return address if kind is None else builder.bitcast(address, kind.as_pointer())


def _spread(builder, kind, number):
    """Return a vector with a number in every lane."""
    nothing, none = ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_INDEX, kind.count), [0] * kind.count)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _INDEX(0)), nothing, none)


def _first_lanes(builder, number):
    """Return a mask of the first `number` lanes."""
    number = _spread(builder, _INTS, builder.trunc(number, _INDEX))
    return builder.icmp_unsigned("<", ir.Constant(_INTS, list(range(LANES))), number)


def _choose(builder, comparison, a, b):
    """Return a where the comparison with b holds, else b; lane by lane."""
    return builder.select(builder.fcmp_ordered(comparison, a, b), a, b)


def _call(builder, name, result, *arguments):
    """Call a function of LLVM by its name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _gather(context, builder, table_type, table, places, lanes):
    """Return the items at `places` of a table, as a vector whose lanes are as wide as an item."""
    longs = _lanes(ir.IntType(64))
    kind, width = ("f32", 4) if lanes == _FLOATS else ("i64", 8)
    base = builder.ptrtoint(_address(context, builder, table_type, table, ir.IntType(64)(0)), ir.IntType(64))
    bytes_in = builder.mul(builder.zext(places, longs), ir.Constant(longs, [width] * LANES))
    addresses = builder.inttoptr(
        builder.add(_spread(builder, longs, base), bytes_in), _lanes(lanes.element.as_pointer())
    )
    everywhere, nothing = ir.Constant(_FLAGS, [1] * LANES), ir.Constant(lanes, ir.Undefined)
    name = f"llvm.masked.gather.v{LANES}{kind}.v{LANES}p0{kind}"
    return _call(builder, name, lanes, addresses, _INDEX(width), everywhere, nothing)


@intrinsic
def load(context, array, index):
    """Return array[index : index + LANES], float32 or float64."""
    kind = _vector_of(array.dtype)

    def build(context, builder, signature, values):
        return builder.load(_address(context, builder, signature.args[0], *values, kind.lanes), align=4)

    return kind(array, index), build


@intrinsic
def load_first(context, array, index, number):
    """Return array[index : index + number] in the first lanes and 0 in the others, without reading beyond."""

    def build(context, builder, signature, values):
        name = f"llvm.masked.load.v{LANES}f32.p0v{LANES}f32"
        address = _address(context, builder, signature.args[0], *values[:2], _FLOATS)
        others = ir.Constant(_FLOATS, [0.0] * LANES)
        return _call(builder, name, _FLOATS, address, _INDEX(4), _first_lanes(builder, values[2]), others)

    return vector(array, index, number), build


@intrinsic
def store(context, array, index, value):
    """Store a vector at array[index : index + LANES] of the same type."""

    def build(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], *values[:2], signature.args[2].lanes)
        builder.store(values[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@intrinsic
def store_first(context, array, index, value, number):
    """Store the first `number` lanes at array[index : index + number]."""

    def build(context, builder, signature, values):
        name = f"llvm.masked.store.v{LANES}f32.p0v{LANES}f32"
        address = _address(context, builder, signature.args[0], *values[:2], _FLOATS)
        _call(builder, name, ir.VoidType(), values[2], address, _INDEX(4), _first_lanes(builder, values[3]))
        return context.get_dummy_value()

    return types.void(array, index, value, number), build


@intrinsic
def store_uint16(context, array, index, value):
    """Store the integer parts of the lanes as uint16 at array[index : index + LANES]."""

    def build(context, builder, signature, values):
        shorts = _lanes(ir.IntType(16))
        whole = builder.trunc(builder.fptosi(values[2], _INTS), shorts)
        builder.store(whole, _address(context, builder, signature.args[0], *values[:2], shorts), align=2)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@intrinsic
def gather(context, table, array, index):
    """Return table[array[index : index + LANES]] for a uint16 array."""

    def build(context, builder, signature, values):
        shorts = _lanes(ir.IntType(16))
        places = builder.load(_address(context, builder, signature.args[1], *values[1:], shorts), align=2)
        return _gather(context, builder, signature.args[0], values[0], places, _FLOATS)

    return vector(table, array, index), build


def _gather_rows(context, builder, signature, values, width):
    """Return the columns of the rows of a (n, width) float32 table at `places`, as vectors.

    Each row is one read, and columns are made of four rows at a time by shuffles within 128 bits: an instruction that
    gathers takes three times as long on some processors.
    """
    (table, places), longs = values, ir.IntType(64)
    places = builder.fptosi(places, _INTS)
    base = _address(context, builder, signature.args[0], table, longs(0))
    rows = []
    for lane in range(LANES):
        at = builder.mul(builder.zext(builder.extract_element(places, _INDEX(lane)), longs), longs(width))
        kind = ir.VectorType(ir.FloatType(), width)
        rows.append(builder.load(builder.bitcast(builder.gep(base, [at]), kind.as_pointer()), align=4))

    def shuffled(a, b, *lanes):
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, len(lanes)), lanes))

    def joined(parts):
        """Return vectors one after the other as one."""
        while len(parts) > 1:
            width = 2 * parts[0].type.count
            parts = [shuffled(a, b, *range(width)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    columns = [[] for _column in range(width)]
    for first in range(0, LANES, 8):
        # vectors of 256 bits, of the rows i and i + 4
        quads = [rows[first + i : first + i + 4] for i in (0, 4)]
        if width == 2:
            a, b = (joined([each for quad in quads for each in quad[i : i + 2]]) for i in (0, 2))
            found = [shuffled(a, b, *(c + i for i in (0, 2, 8, 10, 4, 6, 12, 14))) for c in (0, 1)]
        else:
            r = [joined([quad[i] for quad in quads]) for i in range(4)]
            low, high = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
            pairs = [(shuffled(r[0], r[1], *m), shuffled(r[2], r[3], *m)) for m in (low, high)]
            low, high = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
            found = [shuffled(*pair, *m) for pair in pairs for m in (low, high)]
        for column, part in zip(columns, found, strict=True):
            column.append(part)
    return context.make_tuple(builder, signature.return_type, [joined(column) for column in columns])


@intrinsic
def gather_pairs(context, table, places):
    """Return the columns of a (n, 2) float32 table at rows `places`, integers of at least 0."""
    return types.UniTuple(vector, 2)(table, places), partial(_gather_rows, width=2)


@intrinsic
def gather_fours(context, table, places):
    """Return the columns of a (n, 4) float32 table at rows `places`, integers of at least 0."""
    return types.UniTuple(vector, 4)(table, places), partial(_gather_rows, width=4)


@intrinsic
def splat(context, number):
    """Return a vector with a float32 or float64 number in every lane."""
    kind = _vector_of(number)
    return kind(number), lambda _context, builder, _signature, values: _spread(builder, kind.lanes, values[0])


@intrinsic
def widen(context, value):
    """Return a vector of float32 or float64 as float64."""

    def build(_context, builder, signature, values):
        return values[0] if signature.args[0] == doubles else builder.fpext(values[0], _DOUBLES)

    return doubles(value), build


@intrinsic
def narrow(context, value):
    """Return a vector of float64 rounded to float32."""
    return vector(doubles), lambda _context, builder, _signature, values: builder.fptrunc(values[0], _FLOATS)


@intrinsic
def lane(context, value, number):
    """Return one lane as a float32."""

    def build(context, builder, signature, values):
        return builder.extract_element(values[0], builder.trunc(values[1], _INDEX))

    return types.float32(value, types.int64), build


@intrinsic
def add(context, a, b):
    """Return a + b."""
    return a(a, b), lambda _context, builder, _signature, values: builder.fadd(*values)


@intrinsic
def subtract(context, a, b):
    """Return a - b."""
    return a(a, b), lambda _context, builder, _signature, values: builder.fsub(*values)


@intrinsic
def multiply(context, a, b):
    """Return a b."""
    return a(a, b), lambda _context, builder, _signature, values: builder.fmul(*values)


@intrinsic
def fma(context, a, b, c):
    """Return a b + c with one rounding."""
    return a(a, b, c), lambda _context, builder, _signature, values: _call(
        builder, f"llvm.fma.v{LANES}f32", _FLOATS, *values
    )


@row_kernel
def blend(lines, at, stride, w0, w1, w2, w3):
    """Return w0 lines[at] + w1 lines[at + stride] + .. + w3 lines[at + 3 stride] for a vector of columns."""
    value = multiply(w0, load(lines, at))
    value = fma(w1, load(lines, at + stride), value)
    value = fma(w2, load(lines, at + stride + stride), value)
    return fma(w3, load(lines, at + stride + stride + stride), value)


@intrinsic
def where_below(context, a, limit, value, other):
    """Return `value` where a < limit, else `other`."""

    def build(_context, builder, _signature, values):
        return builder.select(builder.fcmp_ordered("<", values[0], values[1]), values[2], values[3])

    return a(a, limit, value, other), build


@intrinsic
def where_zero(context, a, value, other):
    """Return `value` where a is 0, else `other`."""

    def build(_context, builder, _signature, values):
        is_zero = builder.fcmp_ordered("==", values[0], ir.Constant(_FLOATS, [0.0] * LANES))
        return builder.select(is_zero, *values[1:])

    return a(a, value, other), build


@intrinsic
def minimum(context, a, b):
    """Return the minimum of a and b."""
    return a(a, b), lambda _context, builder, _signature, values: _choose(builder, "<", *values)


@intrinsic
def maximum(context, a, b):
    """Return the maximum of a and b."""
    return a(a, b), lambda _context, builder, _signature, values: _choose(builder, ">", *values)


@intrinsic
def times_power_of_two(context, value, power):
    """Return value 2^k for `power` = 1.5 x 2^23 + k, whose low bits are k, by adding k to the exponent bits."""

    def build(_context, builder, _signature, values):
        raised = builder.shl(builder.bitcast(values[1], _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(values[0], _INTS), raised), _FLOATS)

    return value(value, power), build


def _halve(builder, value, join):
    """Return the lanes reduced to one number, by joining the upper with the lower half until one is left."""
    number = LANES
    while number > 1:
        number //= 2
        nothing = ir.Constant(value.type, ir.Undefined)
        lower = ir.Constant(ir.VectorType(_INDEX, number), list(range(number)))
        upper = ir.Constant(ir.VectorType(_INDEX, number), list(range(number, 2 * number)))
        value = join(builder.shuffle_vector(value, nothing, lower), builder.shuffle_vector(value, nothing, upper))
    return builder.extract_element(value, _INDEX(0))


@intrinsic
def sum_of(context, value):
    """Return the sum of the lanes, added by halves."""
    return types.float32(value), lambda _context, builder, _signature, values: _halve(builder, values[0], builder.fadd)


@intrinsic
def lowest_of(context, value):
    """Return the minimum of the lanes."""
    return types.float32(value), lambda _context, builder, _signature, values: _halve(
        builder, values[0], partial(_choose, builder, "<")
    )


@intrinsic
def highest_of(context, value):
    """Return the maximum of the lanes."""
    return types.float32(value), lambda _context, builder, _signature, values: _halve(
        builder, values[0], partial(_choose, builder, ">")
    )
