"""Tests of the test: gradcheck must reject every planted fault and accept every right rule."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import special

from lockref.autodiff import Primitive, grad, ops, primal, primitive
from lockref.autodiff.gradcheck import GradientError, gradcheck

MILLIONTH = 1 + 1e-6


def sine(factor: float = 0.5, reverse: Any = None, forward: Any = None) -> Primitive:
    """factor · sin x; any rule may be replaced by a faulty one."""
    op: Primitive = primitive(lambda x: factor * np.sin(x))
    op.vjp("x")(reverse or (lambda g, x: g * factor * np.cos(x)))
    op.jvp(forward or (lambda dx, x: dx * factor * np.cos(x)))
    return op


def product(reverse_x: Any = None, reverse_y: Any = None, joint: Any = None, twin: Any = None) -> Primitive:
    """x y², fused, with broadcasting; any rule may be replaced by a faulty one."""
    op: Primitive = primitive(lambda x, y: x * y * y, twin=twin or (lambda x, y: x * y * y))
    op.vjp("x")(reverse_x or (lambda g, y: g * y * y))
    op.vjp("y")(reverse_y or (lambda g, x, y: 2 * g * x * y))
    op.vjp("x", "y")(joint or (lambda g, x, y: (g * y * y, 2 * g * x * y)))
    return op


def bessel(reverse: Any = None, forward: Any = None) -> Primitive:
    """J₀(x), a function that takes no complex numbers; its derivative is −J₁(x)."""
    op: Primitive = primitive(lambda x: special.j0(x))
    op.vjp("x")(reverse or (lambda g, x: -g * special.j1(x)))
    op.jvp(forward or (lambda dx, x: -dx * special.j1(x)))
    return op


def slope(x: Any) -> Any:
    return 0.5 * np.cos(x)


def into_cotangent(g: Any, x: Any) -> Any:
    g *= slope(x)
    return g


def into_kept(g: Any, x: Any) -> Any:
    g = g * slope(x)
    x += 1
    return g


def into_value(g: Any, out: Any, x: Any) -> Any:
    out *= 2
    return g * slope(x)


def one_entry(x: Any) -> Any:
    """1, but for one entry that is a millionth off."""
    factor = np.ones(x.shape)
    factor.flat[3 % x.size] = MILLIONTH
    return factor


class Fault(NamedTuple):
    op: Primitive
    noticed_by: str
    shapes: tuple[tuple[int, ...], ...] = ((3, 4),)
    dtype: Any = np.float64


TWO, LONG = ((4, 4), (4,)), (100_000,)
FAULTS = {
    "reverse rule wrong by a millionth": Fault(sine(reverse=lambda g, x: g * slope(x) * MILLIONTH), "adjoint"),
    "forward rule wrong by a millionth": Fault(sine(forward=lambda dx, x: dx * slope(x) * MILLIONTH), "adjoint"),
    "both rules wrong by the same millionth": Fault(
        sine(reverse=lambda g, x: g * slope(x) * MILLIONTH, forward=lambda dx, x: dx * slope(x) * MILLIONTH),
        "complex step",
    ),
    "both rules wrong by a millionth in one entry": Fault(
        sine(reverse=lambda g, x: g * slope(x) * one_entry(x), forward=lambda dx, x: dx * slope(x) * one_entry(x)),
        "complex step",
    ),
    "both rules transposed": Fault(
        sine(reverse=lambda g, x: (g * slope(x)).T, forward=lambda dx, x: dx.T * slope(x)), "complex step", ((4, 4),)
    ),
    "zero reverse rule for a small function": Fault(sine(1e-7, reverse=lambda g, x: 0 * g), "adjoint"),
    "zero rules for a small function": Fault(
        sine(1e-7, reverse=lambda g, x: 0 * g, forward=lambda dx, x: 0 * dx), "complex step"
    ),
    "zero rules for a small function, float32": Fault(
        sine(1e-7, reverse=lambda g, x: 0 * g, forward=lambda dx, x: 0 * dx), "complex step", dtype=np.float32
    ),
    "permuted reverse rule": Fault(sine(reverse=lambda g, x: np.roll(g * slope(x), 1, -1)), "adjoint"),
    "right only for a cotangent of ones": Fault(sine(reverse=lambda g, x: slope(x) * np.mean(g)), "adjoint"),
    "right only for a tangent of ones": Fault(sine(forward=lambda dx, x: slope(x) * np.mean(dx)), "adjoint"),
    "right only in absolute value": Fault(sine(reverse=lambda g, x: np.abs(g) * slope(x)), "adjoint"),
    "forward rule twice too large, 100,000 elements": Fault(
        sine(forward=lambda dx, x: 2 * dx * slope(x)), "adjoint", (LONG,)
    ),
    "forward rule twice too large, 100,000 elements, float32": Fault(
        sine(forward=lambda dx, x: 2 * dx * slope(x)), "J v", (LONG,), np.float32
    ),
    "not a number": Fault(sine(reverse=lambda g, x: g * np.nan), "adjoint"),
    "writes into its cotangent": Fault(sine(reverse=into_cotangent), "purity"),
    "writes into what the tape keeps": Fault(sine(reverse=into_kept), "purity"),
    "writes into the value": Fault(sine(reverse=into_value), "purity"),
    "writes into its tangent": Fault(sine(forward=into_cotangent), "purity"),
    "turns float32 into float64": Fault(
        sine(forward=lambda dx, x: dx * np.float64(0.5) * np.cos(x)), "form", dtype=np.float32
    ),
    "joint rule wrong by a millionth": Fault(
        product(joint=lambda g, x, y: (g * y * y, 2 * g * x * y * MILLIONTH)), "gradient of y alone", TWO
    ),
    "joint rule with exchanged results": Fault(
        product(joint=lambda g, x, y: (2 * g * x * y, g * y * y)), "gradient of x alone", ((4,), (4,))
    ),
    "single rule differs from the joint one": Fault(product(reverse_x=lambda g, y: g * y), "gradient of x alone", TWO),
    "twin of another value": Fault(product(twin=lambda x, y: x * y * y * MILLIONTH), "unfused twin", TWO),
    "twin with another derivative": Fault(product(twin=lambda x, y: x * y * primal(y)), "unfused twin", TWO),
    "twin of another shape": Fault(product(twin=lambda x, y: (x * y * y)[None]), "form", TWO),
    "broadcasting undone along the wrong axis": Fault(
        product(
            reverse_y=lambda g, x, y: np.sum(2 * g * x * y, axis=1),
            joint=lambda g, x, y: (g * y * y, np.sum(2 * g * x * y, axis=1)),
        ),
        "unfused twin",
        TWO,
    ),
    "finite differences: wrong by a millionth": Fault(
        bessel(lambda g, x: -g * special.j1(x) * MILLIONTH, lambda dx, x: -dx * special.j1(x) * MILLIONTH),
        "finite differences",
    ),
    "finite differences: zero rules": Fault(bessel(lambda g, x: 0 * g, lambda dx, x: 0 * dx), "finite differences"),
    "finite differences: permuted rules": Fault(
        bessel(lambda g, x: np.roll(-g * special.j1(x), 1), lambda dx, x: -np.roll(dx, -1) * special.j1(x)),
        "finite differences",
    ),
    "finite differences: wrong rules, float32": Fault(
        bessel(lambda g, x: -g * special.j1(x) * 1.001, lambda dx, x: -dx * special.j1(x) * 1.001),
        "finite differences",
        dtype=np.float32,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_rejected(name: str) -> None:
    fault = FAULTS[name]
    for seed in range(4 if fault.shapes[0] != LONG else 1):
        rng = np.random.default_rng(seed)
        args = [rng.normal(size=shape).astype(fault.dtype) for shape in fault.shapes]
        with pytest.raises(GradientError, match=fault.noticed_by) as caught:
            gradcheck(fault.op, *args, rng=rng, draws=2)
        assert "\n" not in str(caught.value)


def test_the_message_names_function_arguments_numbers_and_tolerance() -> None:
    rng = np.random.default_rng(0)
    wrong = product(joint=lambda g, x, y: (g * y * y, 3 * g * x * y))
    message = (
        r"gradcheck of <lambda>\(x float64\[4, 4\], y float64\[4\]\): gradient of y alone: ⟨Jᵀu, v⟩ for y, draw 0: "
        r"got \S+, want \S+, error \S+, tolerance \S+ = 8 roundings × \(eps √n \(rms J v \+ max\|f\|\) \+ shaking\), "
        r"eps 2.2e-16$"
    )
    with pytest.raises(GradientError, match=message):
        gradcheck(wrong, rng.normal(size=(4, 4)), rng.normal(size=4), rng=rng)
    wrong = sine(reverse=lambda g, x: 3 * g * slope(x), forward=lambda dx, x: 3 * dx * slope(x))
    with pytest.raises(GradientError, match=r"complex step: J v for args\[0\]\['w'\]\[1\], draw 0 at \[\d, 0\]: got"):
        gradcheck(lambda p: wrong(p["w"][1]), {"w": [None, np.eye(2)[:, :1]]}, rng=rng)


def test_the_report_counts_what_was_compared() -> None:
    report = gradcheck(product(), np.ones((2, 3)), np.ones(3), rng=np.random.default_rng(0), draws=5)
    assert report.oracle == "complex step"
    assert report.comparisons["adjoint"] == 15  # each argument alone, and both: three times five draws
    assert report.comparisons["complex step"] == 30  # of J v and of ⟨Jᵀu, v⟩
    assert report.comparisons["gradient of x alone"] == report.comparisons["gradient of y alone"] == 5
    assert report.comparisons["unfused twin"] == 16  # and the value
    assert 0 < report.worst < 1
    assert str(report).startswith("<lambda>(x float64[2, 3], y float64[3]): compared")


SCALES = [1e-8, 1e-3, 1.0, 1e8]
RIGHT = {
    "sine": (sine(), 1),
    "product": (product(), 2),
    "silu": (ops.silu, 1),
    "sigmoid": (ops.sigmoid, 1),
    "tanh": (ops.tanh, 1),
    "gelu_erf": (ops.gelu_erf, 1),
    "gelu_tanh": (ops.gelu_tanh, 1),
    "divide": (ops.divide, 2),
    "maximum": (ops.maximum, 2),
    "softmax": (ops.softmax, 1),
    "long sum": (lambda x: ops.sum(x * x) - 3.0 * ops.mean(x), 1),
    "nothing but cancellation": (lambda x: (x + 1.0) - x, 1),
    "difference of squares": (lambda x, y: (x + y) * (x - y) - x * x + y * y, 2),
    "constant": (lambda x: np.ones(3), 1),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_rules_are_accepted_at_every_scale(name: str, scale: float, dtype: Any) -> None:
    f, count = RIGHT[name]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        args = [(rng.normal(size=shape) * scale).astype(dtype) for shape in ((3, 4), (4,))][:count]
        assert gradcheck(f, *args, rng=rng, draws=2).worst < 1


def test_entries_of_very_different_size_and_zeros() -> None:
    rng = np.random.default_rng(0)
    x = np.array([1e8, -1.0, 1e-8, 0.0, -0.0, 3.0])
    for f in (sine(), ops.tanh, ops.relu, lambda x: x * x):
        gradcheck(f, x, rng=rng)
    gradcheck(ops.exp, np.zeros((2, 2)), rng=rng)
    gradcheck(ops.exp, np.zeros((0, 2)), rng=rng)


def test_large_arrays_are_accepted_and_still_seen_through() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        x = rng.normal(size=100_000).astype(dtype)
        gradcheck(lambda x: ops.sum(x * x), x, rng=rng, draws=2)
    with pytest.raises(GradientError):  # the tolerance does not grow with the array
        gradcheck(sine(reverse=lambda g, x: g * slope(x) * one_entry(x)[..., ::-1]), x[:9].astype(float), rng=rng)
    with pytest.raises(GradientError):
        gradcheck(sine(forward=lambda dx, x: dx * slope(x) * MILLIONTH), x.astype(float), rng=rng)


def test_functions_that_take_no_complex_numbers() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        for scale in SCALES[:3]:
            report = gradcheck(bessel(), (rng.normal(size=5) * scale).astype(dtype), rng=rng)
            assert report.oracle == "finite differences"
            assert report.comparisons["finite differences"] == 8
    absolute: Primitive = primitive(lambda x: np.abs(x))
    absolute.vjp("x")(lambda g, x: g * np.sign(x))
    absolute.jvp(lambda dx, x: dx * np.sign(x))
    x = np.array([1.0, -0.3, 4.0])
    assert gradcheck(absolute, x, rng=rng).oracle == "finite differences"  # |x + ih| is real
    assert gradcheck(lambda x: absolute(x) * np.exp(x), x, rng=rng, oracle="finite differences").worst < 1
    assert gradcheck(ops.exp, x, rng=rng, oracle="finite differences").oracle == "finite differences"


def test_a_kink_is_no_place_to_check() -> None:
    """Differences converge, at order 2 even, but to the mean of both slopes."""
    ramp: Primitive = primitive(lambda x: np.maximum(np.real(x), 0))
    ramp.vjp("x")(lambda g, x: g * (x > 0))
    ramp.jvp(lambda dx, x: dx * (x > 0))
    assert gradcheck(ramp, np.array([1.0, -2.0]), rng=np.random.default_rng(0)).oracle == "finite differences"
    with pytest.raises(GradientError, match=r"finite differences: J v for x, draw 0.*not smooth"):
        gradcheck(ramp, np.array([1.0, 0.0]), rng=np.random.default_rng(0))


def test_a_function_with_reverse_rules_only() -> None:
    op: Primitive = primitive(lambda x: np.sinh(x))
    op.vjp("x")(lambda g, x: g * np.cosh(x))
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match="no forward rule for 'x'"):
        gradcheck(op, np.ones(2), rng=rng)
    report = gradcheck(op, np.ones(2), rng=rng, forward=False)
    assert report.comparisons["adjoint"] == 0 and report.comparisons["complex step"] == 4


def test_structures_argnums_and_parameters() -> None:
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(3, 2)), "more": [rng.normal(size=3), (rng.normal(), None)]}
    tokens = np.array([0, 2])

    def f(tokens: Any, tree: Any, *, power: int) -> Any:
        return {"a": tree["w"][tokens] ** power, "b": ops.sum(tree["more"][0]) * tree["more"][1][0]}

    report = gradcheck(f, tokens, tree, rng=rng, argnums=1, power=3)
    assert "args[1]['more'][1][0] float64[]" in report.name
    gradcheck(f, tokens, tree, rng=rng, argnums=(1,), power=2)
    with pytest.raises(TypeError, match="integers have no derivative"):
        gradcheck(f, tokens, tree, rng=rng, power=3)


def test_a_point_where_the_function_is_not_finite() -> None:
    with (
        pytest.raises(ValueError, match=r"log\(x float64\[2\]\) is not finite at these arguments"),
        np.errstate(all="ignore"),
    ):
        gradcheck(ops.log, np.array([1.0, 0.0]), rng=np.random.default_rng(0))


def test_the_same_generator_gives_the_same_check() -> None:
    x = np.arange(1.0, 5.0)
    worst = [gradcheck(grad(lambda x: ops.sum(ops.silu(x))), x, rng=np.random.default_rng(7)).worst for _ in range(2)]
    assert worst[0] == worst[1]
