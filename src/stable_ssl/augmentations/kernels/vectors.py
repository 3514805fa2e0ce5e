"""Vector registers for the loops of `resizing`, `blurring` and `colours`: which instructions this processor has, and
how LLVM is told to use them."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.np.arrayobj import make_array


class Instructions(NamedTuple):
    """Names of a processor's instructions.

    `shuffle` fills a register from `num_windows` windows of `window` bytes, `multiply` sums products of pairs, and
    `scale` multiplies fractions of 15 bits and rounds.
    """

    feature: str
    num_windows: int
    window: int
    shuffle: str
    multiply: str
    scale: str


_KNOWN = (
    Instructions(
        "+avx512vbmi", 1, 64,
        "llvm.x86.avx512.permvar.qi.512", "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx512.pmul.hr.sw.512",
    ),
    Instructions("+avx2", 2, 16, "llvm.x86.avx2.pshuf.b", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.pmul.hr.sw"),
)  # fmt: skip
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
BEST = next((kind for kind in _KNOWN if kind.feature in _FEATURES), None)
WINDOW, NUM_WINDOWS = (BEST.window, BEST.num_windows) if BEST else (0, 1)
WIDTH = WINDOW * NUM_WINDOWS // 4  # int32s of a register


def check(*arrays: tuple[Any, str]) -> None:
    """Raise a TypingError if an array is not contiguous or of another type: loading vectors checks nothing."""
    for array, dtypes in arrays:
        if not isinstance(array, types.Array) or array.layout != "C" or str(array.dtype) not in dtypes.split():
            raise TypingError(f"{array} must be a contiguous array of {dtypes}")


def vector(bits: int, count: int) -> ir.VectorType:
    """Return the type of a vector of whole numbers."""
    return ir.VectorType(ir.IntType(bits), count)


class Vectors:
    """Loads, stores and rearranges vectors.

    `data`, `shapes` and `strides` hold those of the function's arguments by their place; arrays only.
    """

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

    def line(self, i: int, y: Any) -> Any:
        """Return the address of line `y` of argument `i`."""
        return self.builder.gep(self.data[i], [self.builder.mul(y, self.strides[i][0])])

    def load(self, start: Any, at: Any, kind: Any) -> Any:
        """Return the value of type `kind` that lies `at` elements after the start."""
        return self.builder.load(self._place(start, at, kind), align=1)

    def store(self, value: Any, start: Any, at: Any) -> None:
        """Write the value `at` elements after the start."""
        self.builder.store(value, self._place(start, at, value.type), align=1)

    def store_past_caches(self, value: Any, start: Any, at: Any) -> None:
        """Write the value there, which must be a multiple of its bytes, without a copy in the caches.

        Another thread sees it once a lock was taken, as one is to hand a batch over.
        """
        written = self.builder.store(value, self._place(start, at, value.type))
        one = ir.Constant(ir.IntType(32), 1)
        written.set_metadata("nontemporal", self.builder.module.add_metadata([one]))

    def _place(self, start: Any, at: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(start, [at]), kind.as_pointer())

    def spread(self, value: Any, count: int) -> Any:
        """Return a vector whose `count` elements are the value."""
        kind = ir.VectorType(value.type, count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(vector(32, count), [0] * count))

    def spread_32(self, value: Any) -> Any:
        """Return a vector whose WIDTH elements are the low half of the value."""
        return self.spread(self.builder.trunc(value, ir.IntType(32)), WIDTH)

    def as_bytes(self, values: Any) -> Any:
        """Return whole numbers as bytes; those below 0 become 0, those above 255 become 255."""
        for sign, bound in (("<", 0), (">", 255)):
            limit = ir.Constant(values.type, [bound] * values.type.count)
            values = self.builder.select(self.builder.icmp_signed(sign, values, limit), limit, values)
        return self.builder.trunc(values, vector(8, values.type.count))

    def take(self, line: Any, block: Any) -> Any:
        """Return 4 · WIDTH bytes of a line for a block.

        Argument 2 has the starts of the windows, argument 3 the places of the bytes in them.
        """
        assert BEST is not None
        b, number, kind = self.builder, block.type, vector(8, 4 * WIDTH)
        at = [b.add(b.mul(block, number(NUM_WINDOWS)), number(i)) for i in range(NUM_WINDOWS)]
        parts = [self.load(line, self.load(self.data[2], i, number), vector(8, WINDOW)) for i in at]
        order = ir.Constant(vector(32, kind.count), [*range(kind.count)])
        window = parts[0] if NUM_WINDOWS == 1 else b.shuffle_vector(*parts, order)
        places = self.load(self.data[3], b.mul(block, number(kind.count)), kind)
        return self.call(BEST.shuffle, kind, window, places)

    def missing_bits(self, precision: Any, words: Any) -> Any:
        """Return the bits that weights of `precision` lack to have 15, for each element of `words`."""
        missing = self.builder.sub(precision.type(15), precision)
        return self.spread(self.builder.trunc(missing, words.element), words.count)

    def blend(self, a: Any, b: Any, weight: Any, missing: Any) -> Any:
        """Return b + weight · (a - b) as bytes, rounded; `missing` are the bits that the weight lacks to have 15."""
        assert BEST is not None
        more = self.call(BEST.scale, a.type, self.builder.shl(self.builder.sub(a, b), missing), weight)
        return self.builder.trunc(self.builder.add(b, more), vector(8, a.type.count))

    def call(self, name: str, result: Any, *values: Any) -> Any:
        """Return the result, of the given type, of one of LLVM's own functions."""
        function = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), values)
