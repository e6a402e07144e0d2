"""Sums of rows of weights with vector instructions, for compiled code.

Compilers keep a sum over many rows in memory and add a few rows at a time. Here a strip of it stays in registers while
all rows are added to it, which is what the speed of the kernels rests on. So these few functions are written in the
language of LLVM instead of Python. It cuts vectors to what the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba.core
import numba.extending
from llvmlite import ir

cgutils: Any = numba.core.cgutils  # no types are known of these
types: Any = numba.core.types
intrinsic: Any = numba.extending.intrinsic

LANES = 16
"""Numbers in a vector of this code."""

_features: Any = llvm.get_host_cpu_features()

HAS_SCATTER: bool = all(_features.get(name, False) for name in ("avx512f", "avx512vl"))
"""Whether the processor reads and writes a vector's numbers at places of its own, as AVX-512 does."""

WIDEST = 16 if HAS_SCATTER else 4
"""Vectors of the widest strip: as many as fit into the registers of the processor, beside a row."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_BITS = ir.VectorType(ir.IntType(32), LANES)
_LANE = ir.IntType(32)
_CONTRACT = ("contract",)


def _repeated(value: int) -> ir.Constant:
    return ir.Constant(_BITS, [value] * LANES)


def _broadcast(builder: Any, value: Any, lanes: int = LANES) -> Any:
    """Return a vector that holds the value in each lane."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_LANE, lanes), [0] * lanes))


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 4
    return value


def _exact_row(builder: Any, base: Any, vectors: int, kind: Any, index: Callable[[int], Any]) -> list[Any]:
    """Load float32 numbers."""
    return [_load(builder, builder.gep(base, [index(v * kind.count)]), kind) for v in range(vectors)]


def _packed_row(builder: Any, base: Any, vectors: int, kind: Any, index: Callable[[int], Any]) -> list[Any]:
    """Load pairs of bfloat16 numbers: a word holds one of the first vector in its lower half, of the next above."""
    row = []
    for pair in range(vectors // 2):
        words = _load(builder, builder.gep(base, [index(pair * LANES)]), _BITS)
        row.append(builder.bitcast(builder.shl(words, _repeated(16)), _FLOATS))
        row.append(builder.bitcast(builder.and_(words, _repeated(0xFFFF0000)), _FLOATS))
    return row


def _strip_of(vectors: int, packed: bool, lanes: int = LANES) -> Any:
    """Return a function ``(out, start, weight, column, rows, values, count)`` for compiled code.

    It adds ``sum(values[i] * weight[rows[i], column:])`` over the first ``count`` rows to the ``vectors * lanes``
    numbers of ``out`` from ``start`` on. Nothing is checked. Rows of ``packed`` weights are half as long, but
    ``column`` counts numbers there, too.
    """
    kind = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def strip(typing: Any, out: Any, start: Any, weight: Any, column: Any, rows: Any, values: Any, count: Any) -> Any:
        signature = types.void(out, types.intp, weight, types.intp, rows, values, types.intp)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out_, weight_, rows_, values_ = (
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4, 5)
            )
            start, column, count = arguments[1], arguments[3], arguments[6]
            integer = start.type

            def index(value: int) -> Any:
                return ir.Constant(integer, value)

            stride = cgutils.unpack_tuple(builder, weight_.shape)[1]
            first = builder.lshr(column, index(1)) if packed else column
            weights = builder.gep(weight_.data, [first])
            target = builder.gep(out_.data, [start])
            sums = _exact_row(builder, target, vectors, kind, index)
            before = builder.block
            loop, done = builder.append_basic_block("rows"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed(">", count, index(0)), loop, done)

            builder.position_at_end(loop)
            i = builder.phi(integer)
            i.add_incoming(index(0), before)
            running = [builder.phi(kind) for _ in sums]
            for phi, value in zip(running, sums, strict=True):
                phi.add_incoming(value, before)
            row = builder.zext(builder.load(builder.gep(rows_.data, [i])), integer)
            factor = _broadcast(builder, builder.load(builder.gep(values_.data, [i])), lanes)
            base = builder.gep(weights, [builder.mul(row, stride)])
            load = _packed_row if packed else _exact_row
            added = [
                builder.fadd(total, builder.fmul(part, factor, flags=_CONTRACT), flags=_CONTRACT)
                for total, part in zip(running, load(builder, base, vectors, kind, index), strict=True)
            ]
            following = builder.add(i, index(1))
            i.add_incoming(following, loop)
            for phi, value in zip(running, added, strict=True):
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

            builder.position_at_end(done)
            results = [builder.phi(kind) for _ in sums]
            for phi, value, final in zip(results, sums, added, strict=True):
                phi.add_incoming(value, before)
                phi.add_incoming(final, loop)
            for v, result in enumerate(results):
                place = builder.bitcast(builder.gep(target, [index(v * lanes)]), kind.as_pointer())
                builder.store(result, place).align = 4
            return context.get_dummy_value()

        return signature, generate

    return strip


add_wide = _strip_of(WIDEST, False)
add_4 = _strip_of(4, False)
add_2 = _strip_of(2, False)
add_1 = _strip_of(1, False)
add_half = _strip_of(1, False, LANES // 2)
add_quarter = _strip_of(1, False, LANES // 4)
add_packed_wide = _strip_of(WIDEST, True)
add_packed_8 = _strip_of(8, True)
add_packed_2 = _strip_of(2, True)


def _keeper(chosen_by: Callable[[Any, Any, Any], Any]) -> Any:
    """Return a function ``(numbers, start, bound, kept, index, count)`` for compiled code.

    It copies those of ``numbers[start : start + LANES]`` that are chosen to ``kept[count:]``, in their order, and their
    positions to ``index[count:]``. Nothing is checked. It returns the new count.

    Args:
        chosen_by: compares the vector of the numbers with that of the bound.
    """

    @intrinsic
    def keep(typing: Any, numbers: Any, start: Any, bound: Any, kept: Any, index: Any, count: Any) -> Any:
        signature = types.intp(numbers, types.intp, types.float32, kept, index, types.intp)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers_, kept_, index_ = (
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 3, 4)
            )
            start, bound, count = arguments[1], arguments[2], arguments[5]
            values = _load(builder, builder.gep(numbers_.data, [start]), _FLOATS)
            chosen = chosen_by(builder, values, _broadcast(builder, bound))
            first = builder.trunc(start, _LANE)
            positions = builder.add(_broadcast(builder, first), ir.Constant(_BITS, list(range(LANES))))
            mask = ir.VectorType(ir.IntType(1), LANES)
            for kind, name, vector, array in ((_FLOATS, "f32", values, kept_), (_BITS, "i32", positions, index_)):
                pointer = builder.gep(array.data, [count])
                element = pointer.type.pointee
                function = cgutils.get_or_insert_function(
                    builder.module,
                    ir.FunctionType(ir.VoidType(), [kind, element.as_pointer(), mask]),
                    f"llvm.masked.compressstore.v{LANES}{name}",
                )
                builder.call(function, [vector, pointer, chosen])
            bits = builder.bitcast(chosen, ir.IntType(LANES))
            found = builder.zext(builder.ctpop(bits), count.type)
            return builder.add(count, found)

        return signature, generate

    return keep


keep_from = _keeper(lambda builder, values, bound: builder.fcmp_ordered(">=", values, bound))  # at least the bound
keep_others = _keeper(lambda builder, values, bound: builder.fcmp_unordered("!=", values, bound))  # NaN is kept


@intrinsic
def rank_among(typing: Any, numbers: Any, at: Any, vectors: Any) -> Any:
    """Return how many of the first ``vectors * LANES`` numbers are larger than number ``at``, or equal and before it.

    Nothing is checked.
    """
    signature = types.intp(numbers, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        at, vectors = arguments[1], arguments[2]
        integer = at.type
        own = _broadcast(builder, builder.load(builder.gep(data, [at])))
        before = builder.block
        loop, done = builder.append_basic_block("vectors"), builder.append_basic_block("done")
        builder.branch(loop)

        builder.position_at_end(loop)
        i, total = builder.phi(integer), builder.phi(integer)
        for phi in (i, total):
            phi.add_incoming(ir.Constant(integer, 0), before)
        start = builder.mul(i, ir.Constant(integer, LANES))
        others = _load(builder, builder.gep(data, [start]), _FLOATS)
        ahead = builder.trunc(builder.sub(at, start), _LANE)  # lanes below it come first
        first = builder.icmp_signed("<", ir.Constant(_BITS, list(range(LANES))), _broadcast(builder, ahead))
        larger = builder.fcmp_ordered(">", others, own)
        equal = builder.and_(builder.fcmp_ordered("==", others, own), first)
        bits = builder.bitcast(builder.or_(larger, equal), ir.IntType(LANES))
        found = builder.add(total, builder.zext(builder.ctpop(bits), integer))
        following = builder.add(i, ir.Constant(integer, 1))
        i.add_incoming(following, loop)
        total.add_incoming(found, loop)
        builder.cbranch(builder.icmp_signed("<", following, vectors), loop, done)

        builder.position_at_end(done)
        return found

    return signature, generate


@intrinsic
def add_at_places(
    typing: Any, out: Any, first: Any, places: Any, values: Any, start: Any, count: Any, factor: Any
) -> Any:
    """``out[first + places[i]] += factor * values[i]`` for ``count`` numbers i from ``start`` on.

    These places are different ones. All arrays have one dimension. Only where `HAS_SCATTER`. Nothing is checked.
    """
    signature = types.void(out, types.intp, places, values, types.intp, types.intp, types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_, places_, values_ = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 3)
        )
        first, start, count, factor = (arguments[i] for i in (1, 4, 5, 6))
        integer = count.type
        base = builder.bitcast(builder.gep(out_.data, [first]), ir.IntType(8).as_pointer())
        end = builder.add(start, count)
        before = builder.block
        loop, body, rest = (builder.append_basic_block(name) for name in ("whole", "body", "rest"))
        few, many, done = (builder.append_basic_block(name) for name in ("few", "many", "done"))
        builder.branch(loop)

        builder.position_at_end(loop)
        at = builder.phi(integer)
        at.add_incoming(start, before)
        following = builder.add(at, ir.Constant(integer, LANES))
        builder.cbranch(builder.icmp_signed("<=", following, end), body, rest)
        builder.position_at_end(body)
        _add_vector(builder, base, places_.data, values_.data, at, None, factor, LANES)
        at.add_incoming(following, builder.block)
        builder.branch(loop)

        builder.position_at_end(rest)
        left = builder.sub(end, at)
        builder.cbranch(builder.icmp_signed(">", left, ir.Constant(integer, LANES // 2)), many, few)
        for block, lanes in ((many, LANES), (few, LANES // 2)):
            builder.position_at_end(block)
            _add_vector(builder, base, places_.data, values_.data, at, left, factor, lanes)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


def _add_vector(builder: Any, base: Any, places: Any, values: Any, at: Any, left: Any, factor: Any, lanes: int) -> None:
    """Write the code of `add_at_places` for one vector; ``left`` of its numbers count, None for all."""
    floats, bits = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(_LANE, lanes)
    mask_type = ir.VectorType(ir.IntType(1), lanes)
    pointer = ir.IntType(8).as_pointer()

    def function(name: str, result: Any, kinds: list[Any]) -> Any:
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name)

    numbers = builder.bitcast(builder.gep(values, [at]), floats.as_pointer())
    where = builder.bitcast(builder.gep(places, [at]), bits.as_pointer())
    zeros, none, align = ir.Constant(floats, [0.0] * lanes), ir.Constant(bits, [0] * lanes), ir.Constant(_LANE, 4)
    if left is None:
        mask = ir.Constant(mask_type, [1] * lanes)
        change, index = builder.load(numbers), builder.load(where)
        change.align = index.align = 4
    else:
        mask = builder.icmp_signed(
            "<", ir.Constant(bits, list(range(lanes))), _broadcast(builder, builder.trunc(left, _LANE), lanes)
        )
        load_numbers = function(
            f"llvm.masked.load.v{lanes}f32.p0", floats, [floats.as_pointer(), _LANE, mask_type, floats]
        )
        load_places = function(f"llvm.masked.load.v{lanes}i32.p0", bits, [bits.as_pointer(), _LANE, mask_type, bits])
        change = builder.call(load_numbers, [numbers, align, mask, zeros])
        index = builder.call(load_places, [where, align, mask, none])
    gather, scatter = {
        16: ("llvm.x86.avx512.mask.gather.dps.512", "llvm.x86.avx512.mask.scatter.dps.512"),
        8: ("llvm.x86.avx512.mask.gather3siv8.sf", "llvm.x86.avx512.mask.scattersiv8.sf"),
    }[lanes]
    scale = ir.Constant(_LANE, 4)
    old = builder.call(
        function(gather, floats, [floats, pointer, bits, mask_type, _LANE]), [zeros, base, index, mask, scale]
    )
    new = builder.fadd(old, builder.fmul(change, _broadcast(builder, factor, lanes), flags=_CONTRACT), flags=_CONTRACT)
    builder.call(
        function(scatter, ir.VoidType(), [pointer, mask_type, bits, floats, _LANE]), [base, mask, index, new, scale]
    )
