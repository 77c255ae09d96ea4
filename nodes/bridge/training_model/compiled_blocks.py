"""Compiles the blocks of a network by torch.compile for the duration of a training.

By blocks, since those of equal shapes share one compiled graph. A block is compiled as a whole or not at all: where
that fails it goes on as without.

Adapters act by hooks on layers within the blocks. As torch is configured, a compiled graph is used again without a look
at the hooks: of two blocks of one class, the second would get the first one's adapters, or none. `_configure` switches
these checks on, and no graph that was made without them is used.
"""

from __future__ import annotations

import importlib.util
import logging
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = 64  # graphs of one kind of block: for the sizes of pictures and, in some classes, for the place of the block
HOOK_CHECKS = "skip_nnmodule_hook_guards"  # of torch's configuration
ACCELERATORS = ("cuda", "xpu")  # those that inductor writes Triton kernels for


def backend_for(device: torch.device, code: Sequence[str] = (), offloaded: bool = False) -> tuple[str, str]:
    """(the compiler to use, "") on an accelerator with Triton; elsewhere ("", why none is used).

    code: what other nodes have put on the MODEL: its numbers may change from call to call, which a graph would not see.
    offloaded: whether the weights are streamed to the device, through buffers that a graph would take for the weights.
    """
    if device.type not in ACCELERATORS:
        return "", f"it is for graphics cards with Triton, and this training runs on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "", "the package triton, which writes the kernels, is not installed"
    if offloaded:
        return "", "the weights do not fit the device and are brought to it layer by layer"
    if code:
        return "", f"other nodes act on the MODEL ({code[0]})"
    import torch._dynamo

    if not hasattr(torch._dynamo.config, HOOK_CHECKS):
        return "", f"torch {torch.__version__} cannot tell layers with an adapter from those without"
    return "inductor", ""


class BlockCompiler:
    """The compiled forward functions of a network's blocks, and what became of them in sentences.

    backend: see `torch.compile`; "" compiles nothing. reason: why nothing is compiled.
    """

    def __init__(self, backend: str | Callable[..., Any], reason: str = "") -> None:
        self.backend, self._sentences = backend, list[str]()
        self._tell: Callable[[str], None] = lambda sentence: None
        self._compiled: dict[Any, Callable[..., Any] | None] = {}  # None: it could not be compiled
        self._paused = not backend
        if reason:
            self._give_up(reason)

    def tell_to(self, tell: Callable[[str], None]) -> None:
        """Give each sentence to `tell` too, from now on, and those that there are already."""
        self._tell = tell
        for sentence in self._sentences:
            tell(sentence)

    def _say(self, sentence: str) -> None:
        if sentence not in self._sentences:
            logging.warning("Bespoke: %s", sentence)
            self._sentences.append(sentence)
            self._tell(sentence)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block everything is computed as without compile."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def compiling(self, blocks: Iterable[nn.Module], unused_options: Sequence[str] = ()) -> Generator[None, None, None]:
        """Within the block each of `blocks` is compiled at its first call with gradients.

        Calls without gradients (validation, samples) are computed as without: they would need graphs of their own.
        unused_options: keys that are left out of the dictionaries that a block is called with, since a graph would hold
        for one value of them alone.
        """
        wrapped = [block for block in blocks if self.backend and _is_own(block)]
        with ExitStack() as stack:
            if wrapped:
                _configure(stack)
            elif self.backend:
                self._give_up("this model has no blocks that are known here")
            try:
                for block in wrapped:
                    block.forward = _Forward(self, block, unused_options)
                yield
            finally:
                for block in wrapped:
                    vars(block).pop("forward", None)  # the class's method is in effect again
                self._compiled.clear()

    def call(self, key: Any, block: nn.Module, eager: Callable[..., Any], args: Any, kwargs: Any, drop: Any) -> Any:
        """The output of a block; its graph is that of `key`, which is made where there is none."""
        if self._paused or not torch.is_grad_enabled():
            return eager(*args, **kwargs)
        if key not in self._compiled:
            self._compiled[key] = torch.compile(_copied(type(block).forward), backend=self.backend, fullgraph=True)
        compiled = self._compiled[key]
        if compiled is None:
            return eager(*args, **kwargs)
        try:
            given = [_without(value, drop) for value in args]
            return compiled(block, *given, **{name: _without(value, drop) for name, value in kwargs.items()})
        except _compile_error() as error:
            self._compiled[key] = None
            words = " ".join(str(error).split())
            self._say(
                f"compile: blocks of the class {type(block).__name__} could not be compiled and are computed as "
                f"without it ({type(error).__name__}: {words[:200]})"
            )
            return eager(*args, **kwargs)

    def check(
        self, loss: Callable[[], Tensor | None], parameters: Sequence[nn.Parameter], compute: torch.dtype
    ) -> None:
        """Compile everything by one forward and backward pass, and compare its gradient with that of one without.

        Where they differ by more than 1e-4 of its length (in 16-bit types: 16 units of their rounding), or the backward
        pass cannot be compiled, everything is computed as without compile from then on. loss: see `loop.Training`.
        compute: what matrices are multiplied in.
        """
        if self._paused:
            return
        logging.info("Bespoke: compiling the blocks of the model; this may take minutes")
        with self.paused():
            plain = _gradient(loss, parameters)
        if plain is None:
            return
        allowed = max(1e-4, 16 * torch.finfo(compute).eps if compute.itemsize < 4 else 0.0)
        try:
            made = _gradient(loss, parameters)
        except _compile_error() as error:
            self._give_up(f"its backward pass could not be compiled ({type(error).__name__})")
            return
        assert made is not None
        difference = float((made - plain).norm() / plain.norm().clamp(min=1e-30))
        if not difference <= allowed:
            self._give_up(f"the gradient differed by {difference:.1e} of its length, and {allowed:.1e} is allowed")

    def _give_up(self, reason: str) -> None:
        self._paused = True
        self._say(f"compile is not used: {reason}")


class _Forward:
    """Stands in for the `forward` of a block."""

    def __init__(self, compiler: BlockCompiler, block: nn.Module, drop: Sequence[str]) -> None:
        self._compiler, self._block, self._eager, self._drop = compiler, block, block.forward, frozenset(drop)
        self._kind = tuple((type(module), *_shapes(module)) for module in block.modules())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiler.call(self._kind, self._block, self._eager, args, kwargs, self._drop)


def _compile_error() -> type[Exception]:
    """What torch raises where it cannot compile. Its compiler is imported where it is used alone."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def _configure(stack: ExitStack) -> None:
    """Settings of torch's compiler for the time of `stack`."""
    import torch._dynamo
    import torch._functorch.config as functorch

    dynamo: Any = torch._dynamo.config
    names = [name for name in ("recompile_limit", "cache_size_limit") if hasattr(dynamo, name)]
    stack.enter_context(dynamo.patch({names[0]: SHAPES, HOOK_CHECKS: False}))
    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        # Otherwise what cannot be compiled of a backward pass shows in that pass, when nothing can be done any more.
        stack.enter_context(functorch.patch(force_non_lazy_backward_lowering=True))


def _is_own(block: nn.Module) -> bool:
    """Whether the block's `forward` is a function of its class, and not one that another pack has put there."""
    return "forward" not in vars(block) and isinstance(type(block).forward, types.FunctionType)


def _copied(function: Any) -> Any:
    """The same function with a code object of its own, by which torch's compiler keeps its graphs.

    So those that another node has had made of this class, without `_configure`, are not used.
    """
    made = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _shapes(module: nn.Module) -> list[tuple[Any, ...]]:
    own = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor.shape, tensor.dtype) for name, tensor in own if tensor is not None]


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict) and keys & value.keys():
        return {name: each for name, each in value.items() if name not in keys}
    return value


def _gradient(loss: Callable[[], Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """The gradient of all parameters as one float32 vector on their device; None where there is no loss."""
    value = loss()
    if value is None:
        return None
    wanted = list(parameters)
    found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
    both = zip(wanted, found, strict=True)
    return torch.cat([(torch.zeros_like(own) if each is None else each).flatten().float() for own, each in both])
