"""Rotary positions and norms that a training computes in its own way: values, gradients, and what stays as it was."""

import pytest
import torch
from bespoke.nodes.bridge.forward_pass.differentiable import DifferentiableFunctions, differentiable

NAMES = [
    f"{kind}_rope{halves}{one}" for kind in ("apply", "rms") for halves in ("", "_split_half") for one in ("", "1")
]


@pytest.fixture
def kernels(comfyui):
    return pytest.importorskip("comfy_kitchen")


def drawn(count, *shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_rotary_positions_turn_complex_numbers(kernels, name):
    """The oracle is complex multiplication: a pair (a, b) at the angle w is (a + bi) exp(iw), after the norm."""
    if not hasattr(kernels, name):
        pytest.skip(f"this comfy_kitchen has no {name}")
    angles = drawn(3, 2)  # [tokens, pairs]
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack((cos, -sin, sin, cos), -1).view(1, 3, 1, 2, 2, 2)
    x, y = drawn(2, 1, 3, 5, 4).requires_grad_()  # [1, tokens, heads, width]
    scales = drawn(2, 4) if name.startswith("rms") else ()
    given = (x,) if name.endswith("1") else (x, y)

    def turned(value, scale=None):
        if scale is not None:
            value = value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale
        halves = "split_half" in name
        first, second = (value[..., :2], value[..., 2:]) if halves else (value[..., ::2], value[..., 1::2])
        out = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat((out.real, out.imag), -1) if halves else torch.view_as_real(out).flatten(-2)

    with DifferentiableFunctions():
        found = getattr(kernels, name)(*given, matrices, *scales[: len(given)])
    found = [found] if name.endswith("1") else list(found)
    expected = [turned(*each) for each in zip(given, *([scales] if len(scales) else []), strict=False)]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)
    ours, theirs = (
        torch.autograd.grad(sum((each * (i + 2.0)).sin().sum() for i, each in enumerate(outs)), given)
        for outs in (found, expected)
    )
    assert all(torch.allclose(one, other, rtol=1e-10) for one, other in zip(ours, theirs, strict=True))


class Overwriting(torch.nn.Module):
    def forward(self, x):
        x = x * 1.0
        x += torch.nn.functional.rms_norm(x, (4,))
        return x


def test_a_norm_whose_input_is_overwritten_has_its_gradient(comfyui):
    """The oracle is the same sum without changing a tensor."""
    network, x = Overwriting(), drawn(2, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="inplace"):
        network(x).sin().sum().backward()
    with differentiable(network, True):
        (ours,) = torch.autograd.grad(network(x).sin().sum(), x)
    (theirs,) = torch.autograd.grad((x + torch.nn.functional.rms_norm(x, (4,))).sin().sum(), x)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert "forward" not in vars(network)


def test_a_result_that_is_written_to_an_argument(comfyui):
    """`torch.add(..., out=x)`, as in ComfyUI 0.33's language models: torch has no gradient of it. The oracle is the
    derivative of (x + sin x)^2 by hand, 2 (x + sin x) (1 + cos x)."""
    start = drawn(1, 5)[0].requires_grad_()
    x = start * 1.0
    with pytest.raises(RuntimeError, match="out="):
        torch.add(x, start.sin(), out=x)
    with DifferentiableFunctions():
        out = torch.add(x, start.sin(), out=x)
    assert out is x
    (gradient,) = torch.autograd.grad(out.square().sum(), start)
    assert torch.allclose(gradient, 2 * (start + start.sin()) * (1 + start.cos()))
