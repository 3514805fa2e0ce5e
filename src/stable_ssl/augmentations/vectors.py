"""Three inner loops, written for vector registers because compilers do not find them: `benchmarks/augmentation.py` says
what that is worth.

Neighbours in a resized line come from places that are not evenly spaced, which compilers make one load a value; x86
processors since 2013 have an instruction for it, and one to multiply and round; others take the plain loops of
`kernels`, with the same results. Sums of a number of taps that is not known beforehand go through memory, tap by tap,
where registers would hold them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array


class Shuffle(NamedTuple):
    """Instructions: to fill a register from `num_windows` windows of `window` bytes, to sum products of pairs, and to
    multiply fractions of 15 bits, rounding."""

    feature: str
    num_windows: int
    window: int
    shuffle: str
    multiply: str
    scale: str


_WIDE = ("llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx512.pmul.hr.sw.512")
_SHUFFLES = (
    Shuffle("+avx512vbmi", 1, 64, "llvm.x86.avx512.permvar.qi.512", *_WIDE),
    Shuffle("+avx512bw", 4, 16, "llvm.x86.avx512.pshuf.b.512", *_WIDE),
    Shuffle("+avx2", 2, 16, "llvm.x86.avx2.pshuf.b", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.pmul.hr.sw"),
)
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
BEST = next((kind for kind in _SHUFFLES if kind.feature in _FEATURES), None)
# Values that a window, and that a register gives at a time: each is made of pairs of bytes, four bytes wide.
WINDOW, NUM_WINDOWS = (BEST.window, BEST.num_windows) if BEST else (0, 1)
WIDTH = WINDOW * NUM_WINDOWS // 4
SUMS = 32


@intrinsic
def _weigh(typing_context, lines, y, starts, places, weights, half, shift, out):
    """Write line `y` of `out`: (half + Σ weight · value of line `y`) >> shift.

    Parameters
    ----------
    lines, out
        (lines, length), uint8; as long as the windows, and blocks of WIDTH, that reach beyond the last value need.
    starts
        (blocks · NUM_WINDOWS,), int64: where each window begins.
    places
        (blocks, WIDTH, 4), uint8: the first value's place in its window, anything, the second one's, anything.
    weights
        (pairs, blocks, WIDTH, 2), int16; each pair's values lie two further on than those of the pair before.
    y, half, shift
        int64.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = _Vectors(context, builder, signature, args)
        (num_pairs, num_blocks), number = v.shapes[4][:2], args[1].type
        line, target = (builder.gep(v.data[i], [builder.mul(args[1], v.strides[i][0])]) for i in (0, 7))
        low_bytes = ir.Constant(_vector(16, 2 * WIDTH), [255] * (2 * WIDTH))
        with cgutils.for_range(builder, num_blocks) as blocks:
            at = builder.mul(blocks.index, number(NUM_WINDOWS))
            windows = [v.load(v.data[2], builder.add(at, number(i)), number) for i in range(NUM_WINDOWS)]
            places = v.load(v.data[3], builder.mul(blocks.index, number(4 * WIDTH)), _vector(8, 4 * WIDTH))
            total = cgutils.alloca_once_value(builder, v.spread(builder.trunc(args[5], ir.IntType(32)), WIDTH))
            builder.store(v.spread(builder.trunc(args[5], ir.IntType(32)), WIDTH), total)
            with cgutils.for_range(builder, num_pairs) as pairs:
                further = builder.mul(pairs.index, number(2))
                parts = [v.load(line, builder.add(start, further), _vector(8, WINDOW)) for start in windows]
                taken = v.call(BEST.shuffle, places.type, v.join(parts), places)
                values = builder.and_(builder.bitcast(taken, low_bytes.type), low_bytes)
                row = builder.add(builder.mul(pairs.index, num_blocks), blocks.index)
                factors = v.load(v.data[4], builder.mul(row, number(2 * WIDTH)), low_bytes.type)
                products = v.call(BEST.multiply, _vector(32, WIDTH), values, factors)
                builder.store(builder.add(builder.load(total), products), total)
            shift = v.spread(builder.trunc(args[6], ir.IntType(32)), WIDTH)
            levels = builder.trunc(builder.ashr(builder.load(total), shift), _vector(8, WIDTH))
            v.store(levels, target, builder.mul(blocks.index, number(WIDTH)))
        return context.get_dummy_value()

    return types.void(lines, y, starts, places, weights, half, shift, out), generate


@intrinsic
def _blend(typing_context, lines, y, weight, precision, out, new_y):
    """Write line `new_y` of `out`: line `y` times `weight` / 2^`precision`, and line `y` + 1 for the rest, rounded.

    Parameters
    ----------
    lines, out
        (lines, length), uint8. As many as 2 · WIDTH - 1 values after line `new_y` are overwritten.
    y, weight, precision, new_y
        int64; the precision is 14 or 15 bits, the weight below 2^15.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = _Vectors(context, builder, signature, args)
        number, words = args[1].type, _vector(16, 2 * WIDTH)
        line, target = (builder.gep(v.data[i], [builder.mul(args[j], v.strides[i][0])]) for i, j in ((0, 1), (4, 5)))
        next_line = builder.gep(line, [v.strides[0][0]])
        weight = v.spread(builder.trunc(args[2], words.element), words.count)
        missing = v.spread(builder.trunc(builder.sub(number(15), args[3]), words.element), words.count)
        with cgutils.for_range_slice(builder, number(0), v.shapes[4][1], number(words.count), number) as (x, _):
            a, b = (builder.zext(v.load(data, x, _vector(8, words.count)), words) for data in (line, next_line))
            more = v.call(BEST.scale, words, builder.shl(builder.sub(a, b), missing), weight)
            v.store(builder.trunc(builder.add(b, more), _vector(8, words.count)), target, x)
        return context.get_dummy_value()

    return types.void(lines, y, weight, precision, out, new_y), generate


@intrinsic
def _sum_pairs(typing_context, source, offsets, weights, num_taps, length, out):
    """Write `length` values of `out`: Σ_tap weight · (source at one offset + source at the other), in float32.

    Parameters
    ----------
    source, out
        (length,) and longer, so that blocks of SUMS fit; uint8 or float32. A sum that is to be uint8 is rounded.
    offsets
        (taps, 2), int64: of the first value's inputs.
    weights
        (taps,), float32.
    num_taps, length
        int64.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, signature, args)
        number, reals = args[3].type, ir.VectorType(ir.FloatType(), SUMS)
        zeros = ir.Constant(reals, [0.0] * SUMS)

        def load(place: Any) -> Any:
            if source.dtype == types.float32:
                return v.load(v.data[0], place, reals)
            return builder.zext(v.load(v.data[0], place, _vector(8, SUMS)), _vector(16, SUMS))

        def add(a: Any, b: Any) -> Any:
            return builder.fadd(a, b) if source.dtype == types.float32 else builder.uitofp(builder.add(a, b), reals)

        with cgutils.for_range_slice(builder, number(0), args[4], number(SUMS), number) as (x, _):
            total = cgutils.alloca_once(builder, reals)
            builder.store(zeros, total)
            with cgutils.for_range(builder, args[3]) as taps:
                pair = [builder.add(builder.mul(taps.index, number(2)), number(i)) for i in range(2)]
                values = [load(builder.add(x, v.load(v.data[1], at, number))) for at in pair]
                weight = v.spread(v.load(v.data[2], taps.index, reals.element), SUMS)
                more = v.call("llvm.fma.v32f32", reals, weight, add(*values), builder.load(total))
                builder.store(more, total)
            result = builder.load(total)
            if out.dtype == types.uint8:
                rounded = v.call("llvm.rint.v32f32", reals, result)
                result = builder.trunc(builder.fptosi(rounded, _vector(32, SUMS)), _vector(8, SUMS))
            v.store(result, v.data[5], x)
        return context.get_dummy_value()

    return types.void(source, offsets, weights, num_taps, length, out), generate


blend: Any = _blend
weigh: Any = _weigh
sum_pairs: Any = _sum_pairs


def _vector(bits: int, count: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), count)


class _Vectors:
    """Loads, stores and rearranges vectors; `data`, `shapes` and `strides` are those of the arguments, by place."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any):
        self.builder = builder
        arrays = {
            i: make_array(kind)(context, builder, args[i])
            for i, kind in enumerate(signature.args)
            if isinstance(kind, types.Array)
        }
        self.data = {i: array.data for i, array in arrays.items()}
        self.shapes, self.strides = (
            {i: cgutils.unpack_tuple(builder, getattr(array, name)) for i, array in arrays.items()}
            for name in ("shape", "strides")
        )

    def load(self, start: Any, at: Any, kind: Any) -> Any:
        return self.builder.load(self._place(start, at, kind), align=1)

    def store(self, value: Any, start: Any, at: Any) -> None:
        self.builder.store(value, self._place(start, at, value.type), align=1)

    def _place(self, start: Any, at: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(start, [at]), kind.as_pointer())

    def spread(self, value: Any, count: int) -> Any:
        """Return a vector of `count` times the value."""
        kind = ir.VectorType(value.type, count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(_vector(32, count), [0] * count))

    def join(self, parts: list[Any]) -> Any:
        """Return one vector of 1, 2 or 4."""
        while len(parts) > 1:
            both = ir.Constant(_vector(32, 2 * parts[0].type.count), [*range(2 * parts[0].type.count)])
            parts = [self.builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def call(self, name: str, result: Any, *values: Any) -> Any:
        function = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), values)
