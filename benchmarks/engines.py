"""Who is measured: each engine runs a problem with its own functions, fused where it has a fused one.

An engine is imported only in the process that runs it, and nothing else that owns threads is.
"""

import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, ClassVar

import numpy as np

from benchmarks.workloads import EPS, Problem


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    return next((d.version for d in metadata.distributions(name=package)), None)


class Steps:
    """The steps of the workloads in terms of an engine's NumPy-like functions `xp`."""

    def __init__(self, xp: Any, number: Callable[[float], Any] = float) -> None:
        self.xp = xp
        self.number = number  # how the engine takes a constant without changing dtype

    def matmul(self, x: Any, y: Any) -> Any:
        return x @ y

    def linear(self, x: Any, w: Any) -> Any:
        return self.matmul(x, w.T)

    def silu(self, x: Any) -> Any:
        return x / (self.number(1) + self.xp.exp(-x))

    def swiglu(self, z: Any, u: Any) -> Any:
        return self.silu(z) * u

    def softmax(self, x: Any) -> Any:
        e = self.xp.exp(x - self.xp.max(x, axis=-1, keepdims=True))
        return e / self.xp.sum(e, axis=-1, keepdims=True)

    def normalize(self, x: Any) -> Any:
        return x * (self.xp.mean(x * x, axis=-1, keepdims=True) + self.number(EPS)) ** self.number(-0.5)

    def rms_norm(self, x: Any, gain: Any) -> Any:
        return gain * self.normalize(x)

    def low_rank(self, x: Any, a: Any, b: Any, norm: bool) -> Any:
        return x + self.linear(self.silu(self.linear(self.normalize(x) if norm else x, a)), b)

    def rope(self, x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        return self.xp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        (heads, length, width), groups = q.shape, k.shape[0]
        q = q.reshape((groups, heads // groups, length, width))
        k, v = (y.reshape((groups, 1, length, width)) for y in (k, v))
        scores = self.matmul(q, self.xp.swapaxes(k, -1, -2)) * self.number(width**-0.5) + mask
        return self.matmul(self.softmax(scores), v).reshape((heads, length, width))


class Engine(ABC):
    """Runs one problem. `forward` records nothing; `both` returns the value and one gradient per leaf."""

    name: ClassVar[str]
    about: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, problem: Problem, steps: Steps | None = None) -> None:
        self.problem = problem
        self.steps = steps or Steps(np)

    def function(self, leaves: Any) -> Any:
        return self.problem.function(self.steps, list(leaves), self.problem.constants)

    def forward(self) -> Any:
        return self.function(self.problem.leaves)

    @abstractmethod
    def both(self) -> tuple[Any, Any]: ...

    def memory(self) -> dict[str, int]:
        """Peak bytes that `both` allocates beyond the problem's own arrays, as Python's tracemalloc sees it."""
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        result = self.both()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del result
        return {"peak": peak - before}


class LockrefSteps(Steps):
    def __init__(self) -> None:
        self.ops = ops = import_module("lockref.autodiff").ops
        super().__init__(np)
        self.matmul, self.swiglu = ops.matmul, ops.swiglu  # type: ignore[method-assign]

    def rms_norm(self, x: Any, gain: Any) -> Any:
        return self.ops.rms_norm(x, gain, eps=EPS)

    def low_rank(self, x: Any, a: Any, b: Any, norm: bool) -> Any:
        if norm:
            return self.ops.normed_low_rank(x, a, b, activation="silu", eps=EPS)
        return self.ops.low_rank(x, a, b, activation="silu")

    def rope(self, x: Any, cos: Any, sin: Any) -> Any:
        return self.ops.rope(x, cos=cos, sin=sin)

    def attention(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        return self.ops.attention(q, k, v, scale=q.shape[-1] ** -0.5)


class Lockref(Engine):
    name, about, package = "lockref", "lockref", "lockref"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, LockrefSteps())
        self.autodiff = import_module("lockref.autodiff")

    def both(self) -> tuple[Any, Any]:
        value, pullback = self.autodiff.vjp(self.function, self.problem.leaves, argnums=0)
        return value, pullback(self.problem.cotangent, release=True)

    def memory(self) -> dict[str, int]:
        """Also what the ledger says is stored between forward and backward."""
        return {**super().memory(), "stored": self.autodiff.saved(self.function, self.problem.leaves).bytes()}


class Products(Engine):
    """The floor: nothing but the workload's matrix products, forward and backward, into standing buffers.

    A forward pass alone finds its operands in the cache; one that prepares a backward pass keeps them all.
    """

    name, about, package = "products", "bare matrix products (NumPy)", "numpy"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.ahead: list[tuple[Any, Any, Any]] = []
        buffers: dict[Any, Any] = {}
        operands: dict[Any, Any] = {}

        def product(x: Any, y: Any) -> tuple[Any, Any, Any]:
            shape = np.matmul(x, y).shape
            return x, y, buffers.setdefault(shape, np.ones(shape, x.dtype))

        def record(x: Any, y: Any) -> Any:
            self.ahead.append(product(x, y))
            return x @ y

        self.steps.matmul = record  # type: ignore[method-assign]
        self.function(problem.leaves)
        self.light = [(operands.setdefault(x.shape, x), y, out) for x, y, out in self.ahead]
        self.back = []
        for x, y, out in self.ahead:
            self.back += [product(out, np.swapaxes(y, -1, -2)), product(np.swapaxes(x, -1, -2), out)]

    def forward(self) -> None:
        for x, y, out in self.light:
            np.matmul(x, y, out=out)

    def both(self) -> tuple[Any, Any]:
        for x, y, out in self.ahead + self.back:
            np.matmul(x, y, out=out)
        return None, None


class TorchSteps(Steps):
    """As published model code writes it: small operations, with the library's silu and softmax."""

    def __init__(self) -> None:
        super().__init__(import_module("torch"))
        self.nn = import_module("torch.nn.functional")
        self.silu, self.linear = self.nn.silu, self.nn.linear  # type: ignore[method-assign]

    def softmax(self, x: Any) -> Any:
        return self.nn.softmax(x, -1)

    def normalize(self, x: Any) -> Any:
        return x * self.xp.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


class FusedTorchSteps(TorchSteps):
    def normalize(self, x: Any, gain: Any = None) -> Any:
        return self.nn.rms_norm(x, x.shape[-1:], gain, EPS)

    def rms_norm(self, x: Any, gain: Any) -> Any:
        return self.normalize(x, gain)

    def attention(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        return self.nn.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]


class Torch(Engine):
    name, about, package = "torch", "torch eager", "torch"
    steps_class: ClassVar[type[TorchSteps]] = TorchSteps

    def __init__(self, problem: Problem) -> None:
        self.torch = import_module("torch")
        convert = self.torch.from_numpy
        leaves = [convert(x.copy()).requires_grad_() for x in problem.leaves]
        constants = [convert(x) for x in problem.constants]
        super().__init__(Problem(problem.function, leaves, constants, convert(problem.cotangent)), self.steps_class())

    def forward(self) -> Any:
        with self.torch.no_grad():
            return super().forward()

    def both(self) -> tuple[Any, Any]:
        value = super().forward()
        return value.detach(), self.torch.autograd.grad(value, self.problem.leaves, self.problem.cotangent)

    def memory(self) -> dict[str, int]:
        """Logical bytes: the running sum of what torch's allocator hands out, not resident memory."""
        profiler = import_module("torch.profiler")
        with profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = self.both()
        del result
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return {"peak": int(np.cumsum([0, *changes]).max())}


class FusedTorch(Torch):
    name, about = "torch-fused", "torch eager, its fused rms_norm and attention"
    steps_class = FusedTorchSteps


class Autograd(Engine):
    name, about, package = "autograd", "autograd", "autograd"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, Steps(import_module("autograd.numpy")))
        self.make_vjp = import_module("autograd").make_vjp

    def both(self) -> tuple[Any, Any]:
        pull, value = self.make_vjp(self.function)(self.problem.leaves)
        return value, pull(self.problem.cotangent)


class MyGrad(Engine):
    """Without its guard against in-place changes, as its documentation advises for speed."""

    name, about, package = "mygrad", "MyGrad (memory guard off)", "mygrad"

    def __init__(self, problem: Problem) -> None:
        self.mygrad = import_module("mygrad")
        super().__init__(problem, Steps(self.mygrad, problem.cotangent.dtype.type))
        self.steps.softmax = import_module("mygrad.nnet").softmax  # type: ignore[method-assign]
        self.mygrad.turn_memory_guarding_off()

    def forward(self) -> Any:
        with self.mygrad.no_autodiff:
            return self.function(self.mygrad.tensor(x, copy=False) for x in self.problem.leaves).data

    def both(self) -> tuple[Any, Any]:
        leaves = [self.mygrad.tensor(x, copy=False) for x in self.problem.leaves]
        value = self.function(leaves)
        value.backward(self.problem.cotangent)
        return value.data, [x.grad for x in leaves]


class Jax(Engine):
    name, about, package = "jax", "JAX, operation by operation", "jax"
    compiled: ClassVar[bool] = False

    def __init__(self, problem: Problem) -> None:
        self.jax = import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        put, nn = self.jax.numpy.asarray, import_module("jax.nn")
        leaves, constants = ([put(x) for x in arrays] for arrays in (problem.leaves, problem.constants))
        super().__init__(Problem(problem.function, leaves, constants, put(problem.cotangent)), Steps(self.jax.numpy))
        self.steps.silu, self.steps.softmax = nn.silu, nn.softmax  # type: ignore[method-assign]
        self.run: list[Any] = [self.jax.jit(f) if self.compiled else f for f in (self.function, self.value_and_pull)]

    def value_and_pull(self, leaves: Any, cotangent: Any) -> tuple[Any, Any]:
        value, pull = self.jax.vjp(self.function, leaves)
        return value, pull(cotangent)[0]

    def forward(self) -> Any:
        return self.jax.block_until_ready(self.run[0](self.problem.leaves))

    def both(self) -> tuple[Any, Any]:
        value, gradients = self.jax.block_until_ready(self.run[1](self.problem.leaves, self.problem.cotangent))
        return value, gradients

    def memory(self) -> dict[str, int]:
        """What the compiler plans to allocate."""
        if not self.compiled:
            return {}
        plan = self.run[1].lower(self.problem.leaves, self.problem.cotangent).compile().memory_analysis()
        return {"peak": plan.temp_size_in_bytes + plan.output_size_in_bytes}


class JaxJit(Jax):
    name, about, compiled = "jax-jit", "JAX, compiled (compilation not timed)", True


ENGINES: dict[str, type[Engine]] = {
    e.name: e for e in (Lockref, Torch, FusedTorch, Autograd, MyGrad, Jax, JaxJit, Products)
}
