"""Storing less: whole functions with their own backward rule, recomputation, and chains run by a schedule."""

from collections.abc import Callable, Sequence
from typing import Any

from lockref.autodiff.array import Traced
from lockref.autodiff.primitive import Plan, Pull, Rule
from lockref.autodiff.reverse import Pullback, vjp
from lockref.autodiff.schedules import Action, Drop, Load, Record, Run, Save
from lockref.autodiff.schedules import Pull as PullStep
from lockref.autodiff.tape import Tape, Variable
from lockref.autodiff.tree import flatten


def custom_vjp(
    forward: Callable[..., tuple[Any, Any]], backward: Callable[[Any, Any], Any], name: str | None = None
) -> Callable[..., Any]:
    """A function of nested arrays with a backward rule of its own.

    forward(*args) -> (out, kept): one output array, and a nested structure of what to keep.
    backward(kept, g) -> a cotangent for each array of the arguments, in their structure; those of arguments
    that need no gradient are ignored.
    Forward mode differentiates `forward` itself.
    """
    label = name or _name(forward)

    def call(*args: Any) -> Any:
        leaves, arg_names, rebuild = flatten(args)
        tape = _innermost(leaves)
        if not isinstance(tape, Tape):
            return forward(*args)[0]
        values, parents, mine = _unwrap(tape, leaves)
        out, kept = forward(*rebuild(values))
        reads, names, rebuild_kept = flatten(kept)

        def pull(g: Any, *reads: Any) -> Any:
            found, paths, _ = flatten(backward(rebuild_kept(reads), g))
            if len(found) != len(leaves):
                raise ValueError(f"{label}: backward returned cotangents {paths}, want {arg_names}")
            return [found[i] for i in mine] if len(mine) > 1 else found[mine[0]]

        return tape.record(out, _plan(label, pull, names, [arg_names[i] for i in mine]), reads, parents)

    return call


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which the tape keeps the arguments only; the sweep computes the rest again.

    f takes nested arrays and returns one array. Frozen arguments stay frozen in the second run.
    """

    def call(*args: Any) -> Any:
        leaves, names, rebuild = flatten(args)
        tape = _innermost(leaves)
        if not isinstance(tape, Tape):
            return f(*args)
        values, parents, mine = _unwrap(tape, leaves)

        def pull(g: Any, *values: Any) -> Any:
            def of_traced(*traced: Any) -> Any:
                everything = list(values)
                for i, t in zip(mine, traced, strict=True):
                    everything[i] = t
                return f(*rebuild(everything))

            _, pullback = vjp(of_traced, *(values[i] for i in mine))
            found = pullback(g, release=True)
            return found if len(mine) > 1 else found[0]

        plan = _plan(f"checkpoint({_name(f)})", pull, names, [names[i] for i in mine])
        return tape.record(f(*rebuild(values)), plan, values, parents)

    return call


def run_chain(
    actions: Sequence[Action],
    step: Callable[[Any, Any], Any],
    params: Sequence[Any],
    x: Any,
    seed: Callable[[Any], Any],
) -> tuple[list[Any], Any]:
    """Gradients through x_{i+1} = step(params[i], x_i), i = 0 … n−1, by following a schedule to the letter.

    `seed` takes x_n and returns its cotangent. Returns the cotangents of params and of x_0. Raises ValueError
    where the schedule asks for a state that it does not hold.
    """
    slots: dict[int, Any] = {}
    tapes: dict[int, Pullback] = {}
    grads: list[Any] = [None] * len(params)
    at, state, cotangent = 0, x, None
    for action in actions:
        match action:
            case Save(i):
                _expect(at == i, action, f"the state at hand is x_{at}")
                slots[i] = state
            case Load(i):
                _expect(i in slots, action, f"slots hold {sorted(slots)}")
                at, state = i, slots[i]
            case Drop(i):
                _expect(i in slots, action, f"slots hold {sorted(slots)}")
                del slots[i]
            case Run(i, j):
                _expect(at == i, action, f"the state at hand is x_{at}")
                for k in range(i, j):
                    state = step(params[k], state)
                at = j
            case Record(i):
                _expect(at == i, action, f"the state at hand is x_{at}")
                state, tapes[i] = vjp(step, params[i], state)
                at = i + 1
            case PullStep(i):
                _expect(i in tapes, action, f"recorded steps are {sorted(tapes)}")
                if cotangent is None:
                    cotangent = seed(state)
                state = None  # the sweep needs what the tape kept, nothing else
                grads[i], cotangent = tapes.pop(i)(cotangent, release=True)
    return grads, cotangent


def _expect(fine: bool, action: Action, but: str) -> None:
    if not fine:
        raise ValueError(f"schedule asks for {action}, but {but}; check the schedule")


def _innermost(leaves: list[Any]) -> Any:
    traces = [leaf.trace for leaf in leaves if isinstance(leaf, Traced)]
    return max(traces, key=lambda t: t.serial, default=None)


def _unwrap(tape: Tape, leaves: list[Any]) -> tuple[list[Any], list[int], list[int]]:
    """Values of the leaves one level out, nodes of the tape's own variables, and their positions."""
    mine = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Variable) and leaf.trace is tape]
    values = [leaf.value if i in mine else leaf for i, leaf in enumerate(leaves)]
    return values, [leaves[i].node for i in mine], mine


def _plan(name: str, pull: Callable[..., Any], reads: list[str], args: list[str]) -> Plan:
    rule = Rule(pull, tuple(args), tuple(reads))
    return Plan(name, (), (), (Pull(pull, 0, len(reads), tuple(range(len(args)))),), (rule,))


def _name(f: Callable[..., Any]) -> str:
    return getattr(f, "__name__", "function")
