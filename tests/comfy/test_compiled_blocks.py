"""The blocks of a training compiled by torch.compile: the same numbers, with every adapter, or as without it.

The oracle is the same training without compile. Backends that need no C++ compiler stand in for inductor: aot_eager,
which traces both passes and computes them with torch's own operations, and functions of the tests.
"""

import importlib.util

import pytest
import tiny
import torch
from bespoke.nodes.bridge.training_model.compiled_blocks import HOOK_CHECKS, BlockCompiler, backend_for
from bespoke.training.adapters import ADAPTERS, AdapterConfig, AdapterSet, LoraAdapter
from helpers import sprite_set
from torch import nn

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, options=None):
        x = x + torch.tanh(self.first(x))
        return x + self.second(x) * (1.0 if options is None else len(options))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(4))).requires_grad_(False)


def adapters(layers, kind=LoraAdapter, rank=2, alpha=2.0):
    """With numbers of a trained one in every part."""
    made = AdapterSet(kind, layers, AdapterConfig(rank, alpha, 0), CPU)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def gradients(network, made, x):
    """(output, gradients of all adapters)."""
    out = network(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [p for one in made for p in one.parameters()])]


def same(one, other):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True))


def sentences(compiler):
    found = []
    compiler.tell_to(found.append)
    return found


def test_each_block_keeps_its_own_adapters(network):
    """Blocks of one class, of which each has another adapter: as torch is configured, the later ones would be given the
    graph of the first, so with its layers, its rank and its alpha. Another training then has other adapters."""
    x = torch.randn(3, 6)
    trainings = [
        [
            adapters({"a": network[0].first}),
            adapters({"b": network[1].first}, alpha=5.0),
            adapters({"c": network[2].second}, rank=3),
        ],
        [
            adapters({"d": network[3].first}),
            adapters({"e": network[1].second, "f": network[0].first}, ADAPTERS["DoRA"]),
        ],
    ]
    compiler = BlockCompiler("eager")
    for own in trainings:
        for attached in own:
            attached.hooks = attached.attached()
            attached.hooks.__enter__()
        batches = (x, torch.randn(5, 6))
        expected = [gradients(network, own, batch) for batch in batches]
        with compiler.compiling(network):
            for batch, values in zip(batches, expected, strict=True):
                assert same(gradients(network, own, batch), values)
        for attached in own:
            attached.hooks.__exit__(None, None, None)
    assert sentences(compiler) == []
    plain = network(x)
    with compiler.compiling(network):
        assert torch.allclose(network(x), plain, atol=1e-6)


def test_it_is_compiled_where_there_are_gradients_and_left_as_it_was(network):
    import torch._dynamo

    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph

    made, x = adapters({"a": network[0].first}), torch.randn(3, 6)
    before, checks = [vars(block).copy() for block in network], getattr(torch._dynamo.config, HOOK_CHECKS)
    compiler = BlockCompiler(backend)

    def use_and_fail():
        with compiler.compiling(network), made.attached():
            with torch.no_grad():
                network(x)
            with compiler.paused():
                network(x)
            assert calls == []
            for _ in range(2):
                network(x)
                assert len(calls) == 2  # the block with an adapter, and one graph for the three without
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert [vars(block) for block in network] == before
    assert getattr(torch._dynamo.config, HOOK_CHECKS) == checks


def test_options_that_are_left_out_make_no_graph_of_their_own(network):
    graphs = []
    compiler = BlockCompiler(lambda graph, inputs: graphs.append(graph) or graph)
    made, x = adapters({"a": network[0].first}), torch.randn(3, 6)
    with compiler.compiling(network, ("block",)), made.attached():
        outs = [network[0](x, {"block": ("input", number), "other": 1}) for number in range(3)]
    assert len(graphs) == 1
    assert torch.equal(outs[0], outs[2])


def test_a_block_that_cannot_be_compiled_is_computed_as_without(network):
    def broken(graph, inputs):
        raise RuntimeError("no kernels here")

    made, x = adapters({"a": network[0].first, "b": network[2].second}), torch.randn(3, 6)
    compiler = BlockCompiler(broken)
    with made.attached():
        expected = gradients(network, [made], x)
        with compiler.compiling(network):
            for _ in range(2):
                assert all(torch.equal(a, b) for a, b in zip(gradients(network, [made], x), expected, strict=True))
    (said,) = sentences(compiler)
    assert said.startswith("compile: blocks of the class Block could not be compiled and are computed as without it")
    assert "no kernels here" in said


@pytest.mark.slow
def test_a_compiler_that_gives_another_gradient_is_not_used(network):
    """One that is a thousandth off, and one that is right."""
    made, x = adapters({"a": network[0].first}), torch.randn(3, 6)

    def off(graph, inputs):
        return lambda *args: [out * 1.001 if torch.is_tensor(out) else out for out in graph(*args)]

    for backend, expected in ((off, 1), ("aot_eager", 0)):
        compiler = BlockCompiler(backend)
        with made.attached(), compiler.compiling(network):
            plain = [each.clone() for each in gradients(network, [made], x)] if expected == 0 else None
            compiler.check(lambda: network(x).square().mean(), list(made.parameters()), torch.float32)
            after = gradients(network, [made], x)
        found = sentences(compiler)
        assert len(found) == expected
        if expected:
            assert found[0].startswith("compile is not used: the gradient differed by ")
            assert found[0].endswith(" of its length, and 1.0e-04 is allowed")
            with made.attached():
                assert all(torch.equal(a, b) for a, b in zip(after, gradients(network, [made], x), strict=True))
        else:
            assert same(after, plain)


def test_where_it_is_used():
    assert backend_for(CPU) == ("", "it is for graphics cards with Triton, and this training runs on cpu")
    card = torch.device("cuda")
    if importlib.util.find_spec("triton") is None:
        assert backend_for(card)[1] == "the package triton, which writes the kernels, is not installed"
    else:
        assert backend_for(card) == ("inductor", "")
        assert backend_for(card, ["FreeU"]) == ("", "other nodes act on the MODEL (FreeU)")
        assert backend_for(card, offloaded=True)[0] == ""
    compiler = BlockCompiler("aot_eager")
    with compiler.compiling([]):
        pass
    assert sentences(compiler) == ["compile is not used: this model has no blocks that are known here"]


# --- through the nodes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, node="BespokeTrainLora", **changes):
    model, clip, vae = models
    settings = dict(
        images=sprite_set(2, 4, side=64, colour="teal"), steps=3, batch_size=2, seed=5, learning_rate=1e-2,
        precision="fp32", resume=False,
    )  # fmt: skip
    settings |= dict(rank=2, alpha=2.0) if node == "BespokeTrainLora" else dict(name="w", init_text="red")
    return run_node(node, model=model, clip=clip, vae=vae, **settings | changes)


@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion"])
def test_on_a_processor_a_training_is_as_without_and_says_so(run_node, models, node):
    plain, asked = (train(run_node, models, node, compile=compile) for compile in (False, True))
    assert all(torch.equal(plain[1][key], asked[1][key]) for key in plain[1])
    run, report = (asked[3], asked[4]) if node == "BespokeTrainLora" else (asked[4], asked[5])
    said = "compile is not used: it is for graphics cards with Triton, and this training runs on cpu"
    assert run.notes == [said]
    assert said[1:] in report  # it begins a sentence
    assert run.id == (plain[3] if node == "BespokeTrainLora" else plain[4]).id


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_training_learns_the_same(run_node, models, monkeypatch, checkpointing):
    """A whole training of the small U-Net: the losses of its steps and what it has learned.

    Adam divides by the size of the gradient, so that rounding shows more in what is learned than in the losses.
    """
    plain = train(run_node, models, targets="attention + feed-forward", gradient_checkpointing=checkpointing)
    monkeypatch.setattr("bespoke.nodes.bridge.training_model.denoiser.backend_for", lambda *_: ("aot_eager", ""))
    made = train(
        run_node, models, targets="attention + feed-forward", gradient_checkpointing=checkpointing, compile=True
    )
    assert made[3].notes == []
    assert made[2]["loss"] == pytest.approx(plain[2]["loss"], rel=1e-4)
    for key in plain[1]:
        assert (made[1][key] - plain[1][key]).norm() <= 1e-3 * plain[1][key].norm(), key
    assert not any("forward" in vars(module) for module in models[0].model.diffusion_model.modules())
