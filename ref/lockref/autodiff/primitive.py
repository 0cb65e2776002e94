"""Primitive operations: a NumPy function and one derivative rule per argument.

The signature of a reverse rule *is* its storage declaration: after the cotangent g it names exactly
what the tape must keep. A name is one of

* an argument, `out`, or a declared residual: an array, kept on the tape;
* a keyword-only parameter, or `<argument>_shape`: plain data, which costs nothing.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lockref.autodiff.array import Traced

Function: TypeAlias = Callable[..., Any]


class Rule(NamedTuple):
    """A derivative rule and the names it reads, in the order it takes them."""

    function: Function
    args: tuple[str, ...]  # the arguments it differentiates with respect to
    names: tuple[str, ...]


class Pull(NamedTuple):
    """A reverse rule as a plan runs it: function(g, *reads[start:stop])."""

    function: Function
    start: int
    stop: int
    targets: tuple[int, ...]  # its arguments' positions among those that need a gradient


class Plan(NamedTuple):
    """What one primitive does when a given set of its arguments needs a gradient."""

    name: str
    takes: tuple[int, ...]  # what the pulls read: positions in (*args, out, *residuals, *plain data)
    data: tuple[str, ...]  # names of the plain data
    pulls: tuple[Pull, ...]
    rules: tuple[Rule, ...]  # of the pulls
    fused: bool = False  # the rules are plain NumPy: a traced cotangent goes through them by linearity


class Primitive:
    """A differentiable operation: `op(*arrays, **parameters)`, arrays positional, parameters keyword-only."""

    def __init__(self, impl: Function, residuals: tuple[str, ...], twin: Function | None) -> None:
        self.impl = impl
        self.__name__ = self.name = impl.__name__
        self.__doc__ = impl.__doc__
        self.__module__ = impl.__module__
        self.residuals = residuals
        self.twin = twin
        signature = inspect.signature(impl).parameters.values()
        self.args = tuple(p.name for p in signature if p.kind is not p.KEYWORD_ONLY)
        self.params = tuple(p.name for p in signature if p.kind is p.KEYWORD_ONLY)
        self.defaults = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        self.vjps: dict[tuple[str, ...], Rule] = {}
        self.jvps: dict[str, Rule] = {}
        self._plans: dict[int, Plan] = {}
        if residuals and twin is None:
            raise TypeError(f"{self.name}: an operation with residuals needs an unfused twin= for forward mode")

    def __call__(self, *args: Any, **params: Any) -> Any:
        trace: Any = None
        for a in args:
            if isinstance(a, Traced) and (trace is None or a.trace.serial > trace.serial):
                trace = a.trace  # the innermost transform
        if params and any(isinstance(p, Traced) for p in params.values()):
            names = [k for k, p in params.items() if isinstance(p, Traced)]
            raise TypeError(f"{self.name}: {', '.join(names)} is traced: pass arrays by position, {self.args}")
        if trace is not None:
            return trace.apply(self, args, params)
        out = self.impl(*args, **params)
        return out[0] if self.residuals else out

    def __repr__(self) -> str:
        return f"<primitive {self.name}({', '.join(self.args)})>"

    def vjp(self, *args: str) -> Callable[[Function], Function]:
        """Register a reverse rule (g, *names) -> cotangent of the argument named.

        With several arguments the rule is *joint*: it returns one cotangent for each and is used when
        all of them need one. Each argument still has a rule of its own, for when the others are frozen.
        """

        def register(function: Function) -> Function:
            self.vjps[args] = self._rule(function, args, "vjp")
            return function

        return register

    def jvp(self, arg: str | Function) -> Any:
        """Register a forward rule (tangent, *names) -> its contribution to the tangent of the output."""
        if callable(arg):  # @op.jvp on an operation of one argument
            self.jvps[self.args[0]] = self._rule(arg, self.args[:1], "jvp")
            return arg

        def register(function: Function) -> Function:
            self.jvps[arg] = self._rule(function, (arg,), "jvp")
            return function

        return register

    def plan(self, mask: int) -> Plan:
        """The plan for the set of arguments whose bits are set in `mask`."""
        plan = self._plans.get(mask)
        if plan is None:
            plan = self._plans[mask] = self._plan([a for i, a in enumerate(self.args) if mask >> i & 1])
        return plan

    def _plan(self, needed: list[str]) -> Plan:
        rules = []
        left = list(needed)
        for group in sorted(self.vjps, key=len, reverse=True):  # joint rules first
            if set(group) <= set(left):
                rules.append(self.vjps[group])
                left = [a for a in left if a not in group]
        if left:
            raise TypeError(f"{self.name}: no reverse rule for {left[0]!r}; declare @{self.name}.vjp({left[0]!r})")
        arrays = (*self.args, "out", *self.residuals)
        data = tuple(dict.fromkeys(n for r in rules for n in r.names if n not in arrays))
        scope = (*arrays, *data)
        takes: list[int] = []
        pulls = []
        for rule in rules:
            start = len(takes)
            takes += [scope.index(n) for n in rule.names]
            pulls.append(Pull(rule.function, start, len(takes), tuple(needed.index(a) for a in rule.args)))
        return Plan(self.name, tuple(takes), data, tuple(pulls), tuple(rules), self.twin is not None)

    def datum(self, name: str, values: Any, params: dict[str, Any]) -> Any:
        """Plain data that a rule names: a parameter, or the shape of an argument."""
        if name in self.params:
            return params[name] if name in params else self.defaults[name]
        return np.shape(values[self.args.index(name.removesuffix("_shape"))])

    def _rule(self, function: Function, args: tuple[str, ...], kind: str) -> Rule:
        names = tuple(inspect.signature(function).parameters)[1:]
        known = {*self.args, "out", *self.params, *(f"{a}_shape" for a in self.args)}
        if kind == "vjp":
            known |= set(self.residuals)
        for name in names:
            if name not in known:
                raise TypeError(
                    f"{self.name}.{kind}{args}: the rule names {name!r}, which it cannot keep; "
                    f"choose from {', '.join(sorted(known))}, or return it as a residual"
                )
        for arg in args:
            if arg not in self.args:
                raise TypeError(f"{self.name}.{kind}: no argument {arg!r}; choose from {', '.join(self.args)}")
        return Rule(function, args, names)


def primitive(impl: Function | None = None, *, residuals: tuple[str, ...] = (), twin: Function | None = None) -> Any:
    """Make a NumPy function a differentiable operation.

    `residuals` names further arrays that the function returns after its output, for reverse rules to
    keep. `twin` is the same function written with smaller operations: forward mode and nested
    transforms use it, and `gradcheck` compares the two.
    """
    if impl is not None:
        return Primitive(impl, residuals, twin)
    return lambda f: Primitive(f, residuals, twin)
