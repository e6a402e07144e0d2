"""The compiled kernels of the sparse engine as plain Python that counts its multiply-adds and its calls.

The source is the package's own. Behind each line that adds products, ``a += b * c`` or ``a = b * c + d * e``, another
one adds the number of products to a count. Sums of rows, which are vector instructions there, are NumPy's here.
"""

import ast
import contextlib
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

from torchrsm import compiling
from torchrsm.rsm.kernels import compiled, cpu, vectors

CALLED = ("pack", "select", "select_gradient", "sort_memory", "sort_input", "cell_gradient", "decode", "loss")


def _products(node):
    """Return the products in an expression, those in an index left out."""
    if isinstance(node, ast.Subscript):
        return 0
    is_product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
    return is_product + sum(map(_products, ast.iter_child_nodes(node)))


def _added(statement):
    """Return how many products a statement adds."""
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add):
        return _products(statement.value)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
        value = statement.value
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            both = _products(value.left), _products(value.right)
            return sum(both) if all(both) else 0
    return 0


class _Counting(ast.NodeTransformer):
    def visit_AugAssign(self, node):
        added = _added(node)
        return [node, ast.parse(f"COUNTS['multiply-adds'] += {added}").body[0]] if added else node

    visit_Assign = visit_AugAssign  # noqa: N815


def _counting_module(counts):
    tree = _Counting().visit(ast.parse(Path(compiled.__file__).read_text()))
    module = ModuleType("counted_kernels_of_a_test")
    module.COUNTS = counts
    sys.modules[module.__name__] = module  # named tuples look for it
    before = compiling.compiled
    compiling.compiled = lambda **_: lambda function: function
    try:
        exec(compile(ast.fix_missing_locations(tree), compiled.__file__, "exec"), module.__dict__)
    finally:
        compiling.compiled = before
        del sys.modules[module.__name__]

    def add_rows(out, start, weight, column, n, rows, values, count):
        counts["multiply-adds"] += int(count) * int(n)
        out[start : start + n] += values[:count] @ weight[rows[:count], column : column + n]

    def add_packed_rows(out, weight, packed, n, rows, values, count):
        add_rows(out, 0, weight, 0, n, rows, values, count)

    def keep_others(numbers, start, bound, kept, index, count):
        for i in range(start, start + vectors.LANES):
            if numbers[i] != bound:
                kept[count], index[count] = numbers[i], i
                count += 1
        return count

    module.keep_others = keep_others
    module._add_rows = add_rows
    module._add_packed_rows = add_packed_rows
    module._largest = lambda *_: False  # the other way to find the largest
    module._add_at = module._add_at_one_by_one
    for name in CALLED:
        setattr(module, name, _called(name, getattr(module, name), counts))
    return module


def _called(name, kernel, counts):
    def call(*arguments, **named):
        counts[name] += 1
        return kernel(*arguments, **named)

    return call


@contextlib.contextmanager
def counted_kernels():
    """Let the sparse engine compute with them in the block; yields the counts, of multiply-adds and of each kernel."""
    counts = Counter()
    before = cpu.compiled
    cpu.compiled = _counting_module(counts)
    try:
        yield counts
    finally:
        cpu.compiled = before
