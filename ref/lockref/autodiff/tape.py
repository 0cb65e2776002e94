"""The tape: what reverse mode writes down on the way forward, and the sweep that reads it backward."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from lockref.autodiff.array import Traced, next_serial
from lockref.autodiff.primitive import Plan, Primitive


class Variable(Traced):
    """A traced array of reverse mode; `node` numbers it on its tape."""

    __slots__ = ("node",)

    def __init__(self, trace: "Tape", value: Any, node: int) -> None:
        self.trace = trace
        self.value = value
        self.node = node


# One operation on the tape: its plan, the values that its pulls read one after the other, and the nodes of
# the arguments that need a gradient. Only the reads hold arrays. A plain tuple: one is made per operation.
Record: TypeAlias = tuple[Plan, list[Any], list[int]]


class Tape:
    """Records operations on its variables and sweeps them in reverse.

    Nodes are numbered: first the inputs, then the result of each record in order.
    """

    def __init__(self, inputs: list[Any]) -> None:
        self.serial = next_serial()
        self.records: list[Record] = []
        self.shapes: list[tuple[int, ...]] = [x.shape for x in inputs]  # of every node
        self.dtypes = [x.dtype for x in inputs]

    def variables(self, inputs: list[Any]) -> list[Variable]:
        """The inputs as variables. The tape does not hold them: what no rule names dies with its last user."""
        return [Variable(self, x, i) for i, x in enumerate(inputs)]

    def apply(self, op: Primitive, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        """Compute op(*args, **params) and record what its reverse rules name."""
        scope: list[Any] = []
        parents: list[int] = []
        mask = 0
        nested = False  # is there another transform outside this one?
        for a in args:
            if isinstance(a, Variable) and a.trace is self:
                mask |= 1 << len(scope)
                parents.append(a.node)
                a = a.value
            if isinstance(a, Traced):
                nested = True
            scope.append(a)
        if not nested:
            out = op.impl(*scope, **params)
        elif op.twin is None:
            out = op(*scope, **params)
        else:  # a fused rule is plain NumPy, so derivatives of it go through the twin
            return op.twin(*args, **params)
        plan = op.plan(mask)
        data = [op.datum(name, scope, params) for name in plan.data] if plan.data else ()
        if op.residuals:
            scope += out
            out = out[0]
        else:
            scope.append(out)
        scope += data
        return self.record(out, plan, [scope[i] for i in plan.takes], parents)

    def record(self, out: Any, plan: Plan, reads: list[Any], parents: list[int]) -> Variable:
        """Write one operation down; the variable of its result."""
        self.records.append((plan, reads, parents))
        node = len(self.shapes)
        self.shapes.append(out.shape)
        return Variable(self, out, node)

    def sweep(self, seeds: dict[int, Any], release: bool) -> list[Any]:
        """Pull cotangents of outputs (by node) back to the inputs: the vector-Jacobian product.

        With `release`, each kept buffer is let go at its last use and the tape ends empty.
        """
        cotangents: list[Any] = [None] * len(self.shapes)
        for node, seed in seeds.items():
            cotangents[node] = seed
        for _ in self.steps(cotangents, release):
            pass
        return cotangents

    def steps(self, cotangents: list[Any], release: bool) -> Iterator[tuple[str, Any]]:
        """The sweep, one record at a time: yields the operation just pulled and the cotangent it was given."""
        records, shapes, inputs = self.records, self.shapes, len(self.dtypes)
        while len(cotangents) > inputs:
            g = cotangents.pop()
            plan, reads, parents = records.pop() if release else records[len(cotangents) - inputs]
            if g is None:
                continue
            for function, start, stop, targets in plan.pulls:
                if plan.fused and isinstance(g, Traced):
                    found = through(g, function, reads[start:stop])
                else:
                    found = function(g, *reads[start:stop])
                for target, c in zip(targets, found, strict=True) if len(targets) > 1 else ((targets[0], found),):
                    node = parents[target]
                    if c.shape != shapes[node]:
                        c = unbroadcast(c, shapes[node])
                    before = cotangents[node]
                    cotangents[node] = c if before is None else before + c
            yield plan.name, g


def through(g: Any, rule: Any, reads: list[Any]) -> Any:
    """A reverse rule applied to a traced cotangent: it is linear in g, so value and tangent go through alike."""
    linear = getattr(g.trace, "linear", None) if isinstance(g, Traced) else None
    return linear(lambda h: through(h, rule, reads), g) if linear else rule(g, *reads)


def unbroadcast(c: Any, shape: tuple[int, ...]) -> Any:
    """Sum a cotangent over the axes that broadcasting added or stretched."""
    added = tuple(range(len(c.shape) - len(shape)))
    c = np.sum(c, axis=added) if added else c
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and c.shape[i] != 1)
    c = np.sum(c, axis=stretched, keepdims=True) if stretched else c
    return c if c.shape == shape else np.broadcast_to(c, shape)  # a rule may return a smaller constant
