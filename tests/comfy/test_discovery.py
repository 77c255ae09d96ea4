"""Layers found by observing a network: the records' own layers, and a class that nobody has described."""

import re

import families
import pytest
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import TARGETS, checkpoint_blocks, discovery, recorded_family, target_layers
from bespoke.nodes.bridge.models.layers import is_linear
from bespoke.training.errors import InputError

SLOW = {"sd15", "sdxl", "sdxl_refiner", "sd3", "flux_fill", "lumina2", "wan22"}
# An inpainting U-Net has the layers of the plain one.
NAMES = [name for name in families.FAMILIES if "inpainting" not in name]
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]


def layout_of(name):
    """(the diffusion model, what discovery finds in it) of a small model."""
    model, clip, _ = families.made(name)
    base = model.model
    latent = discovery.discovery_latent(base)
    cond, more = conditioning.encode_prompt(clip, "a red circle")
    conds = conditioning.model_conds(base, cond, more, latent, torch.device("cpu")).tensors()
    return base.diffusion_model, discovery.discover(base, conds)


@pytest.mark.parametrize("name", PARAMS)
def test_discovery_finds_what_the_records_say(comfyui, name):
    """The oracle is the record, which was written by hand from the class and its paper."""
    network, layout = layout_of(name)
    assert isinstance(layout, discovery.Layout), layout
    family, found = recorded_family(network), discovery.family_from(layout, "")
    linear = [layer for layer, module in network.named_modules() if is_linear(module)]
    for target in TARGETS[:3]:
        wanted = {layer for layer in linear if re.fullmatch(family.patterns[target], layer)}
        given = {layer for layer in linear if re.fullmatch(found.patterns[target], layer)}
        assert given == wanted - set(family.unused_layers(network)), target
    assert set(layout.unused) == set(family.unused_layers(network))
    assert set(found.overwritten_input(network)) == set(family.overwritten_input(network))
    if not family.name.startswith("U-Net"):  # whose record adds the residual blocks
        assert set(found.blocks(network)) == set(family.blocks(network))


class Stranger(torch.nn.Module):
    """A network of no known class: other names, fused keys and values, an attention of its own, blocks in a dictionary.

    Rooms of kind `even` look at the picture, of kind `odd` at the prompt; the sum of a room's two halves goes on.
    """

    def __init__(self, width=32, text=48, rooms=2):
        super().__init__()
        self.enter = torch.nn.Conv2d(4, width, 2, 2)
        self.reading = torch.nn.Linear(text, width)
        self.clock = torch.nn.Linear(1, 2 * width)
        self.house = torch.nn.ModuleDict()
        for number in range(rooms):
            for kind in ("even", "odd"):
                self.house[f"{kind}{number}"] = Room(width)
        self.leave = torch.nn.Linear(width, 16)

    def forward(self, x, timesteps, context=None, **_):
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        scale, shift = self.clock(timesteps[:, None, None].float() / 1000).chunk(2, -1)
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        words = self.reading(context)
        for name, room in self.house.items():
            tokens = room(tokens * (1 + scale) + shift, words if name.startswith("odd") else None)
        out = self.leave(tokens).unflatten(1, (height, width))
        return out.unflatten(-1, (4, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class Room(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.calm = torch.nn.LayerNorm(width)
        self.ask = torch.nn.Linear(width, width)
        self.answer = torch.nn.Linear(width, 2 * width)
        self.say = torch.nn.Linear(width, width)
        self.grow, self.shrink = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, tokens, words):
        calm = self.calm(tokens)
        heads = lambda value: value.unflatten(-1, (4, -1)).transpose(1, 2)  # noqa: E731
        key, value = map(heads, self.answer(calm if words is None else words).chunk(2, -1))
        weights = (heads(self.ask(calm)) @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        tokens = tokens + self.say((weights @ value).transpose(1, 2).flatten(2))
        tokens += self.shrink(torch.nn.functional.gelu(self.grow(self.calm(tokens))))
        return tokens


class Broken(Stranger):
    def forward(self, x, timesteps, context=None, **_):
        raise RuntimeError("no picture of this size")


def stranger(kind=Stranger):
    """SD1.5's base with a `Stranger` as its network."""
    import tiny

    model = tiny.patcher(tiny.SMALLEST)
    network = kind(text=tiny.CONTEXT)
    network.dtype = torch.float32
    tiny.fill(network, 7)
    model.model.diffusion_model = network.eval()
    return model, tiny.clip(), tiny.vae()


def test_a_class_that_nobody_has_described(comfyui):
    model, clip, _ = stranger()
    base = model.model
    cond, more = conditioning.encode_prompt(clip, "a red circle")
    latent = discovery.discovery_latent(base)
    conds = conditioning.model_conds(base, cond, more, latent, torch.device("cpu")).tensors()
    layout = discovery.discover(base, conds)
    assert isinstance(layout, discovery.Layout), layout
    kinds = [f"{kind}{number}" for number in range(2) for kind in ("even", "odd")]
    parts = ("ask", "answer", "say")
    assert layout.cross == tuple(f"house.{kind}.{part}" for kind in kinds if kind[:3] == "odd" for part in parts)
    assert layout.attention == tuple(f"house.{kind}.{part}" for kind in kinds for part in parts)
    assert layout.feed_forward == tuple(f"house.{kind}.{part}" for kind in kinds for part in ("grow", "shrink"))
    assert layout.blocks == tuple(f"house.{kind}" for kind in kinds)
    assert layout.overwritten == tuple(f"house.{kind}.calm" for kind in kinds)
    assert layout.unused == ()


def test_why_no_layers_were_found_is_said_and_logged(comfyui, caplog):
    """Layers can still be named by hand."""
    model, clip, _ = stranger(Broken)
    base, network = model.model, model.model.diffusion_model
    cond, more = conditioning.encode_prompt(clip, "a red circle")
    latent = discovery.discovery_latent(base)
    with caplog.at_level("INFO"):
        discovery.discover(base, conditioning.model_conds(base, cond, more, latent, torch.device("cpu")).tensors())
    assert any(
        "the layers of a Broken were not found" in record.message and record.exc_info for record in caplog.records
    )
    why = r"\(observing it raised RuntimeError \(no picture of this size\)\)"
    with pytest.raises(InputError, match=f"the layers of a Broken are not known by name here {why}; set targets to"):
        target_layers(network, TARGETS[0])
    with pytest.raises(InputError, match=f"the blocks of a Broken are not known here {why}, so gradient_checkpointing"):
        checkpoint_blocks(network)
    assert len(target_layers(network, "custom", "*ask")) == 4


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("targets", TARGETS[:3])
def test_a_class_that_nobody_has_described_is_trained(run_node, targets, saving):
    from helpers import sprite_set

    model, clip, vae = stranger()
    images = sprite_set(2, 4, side=64, colour="teal")
    trained, lora, *_ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, steps=2, batch_size=2, rank=2, alpha=1.0,
        learning_rate=1e-2, seed=5, precision="fp32", resume=False, targets=targets, gradient_checkpointing=saving,
    )  # fmt: skip
    layers = {"cross-attention": 6, "attention": 12, "attention + feed-forward": 20}[targets]
    assert sum("lora_up" in key for key in lora) == layers
    assert all(bool(value.any()) for key, value in lora.items() if "lora_up" in key)
    assert len(trained.patches) == layers


def test_a_network_is_observed_once(comfyui):
    """A prompt is encoded for it the first time alone: of a large text encoder that takes seconds."""
    from bespoke.nodes.bridge.models import learn_layers

    model, clip, _ = stranger()
    asked = []

    def conds(latent):
        asked.append(latent)
        cond, more = conditioning.encode_prompt(clip, "a red circle")
        return conditioning.model_conds(model.model, cond, more, latent, torch.device("cpu")).tensors()

    learn_layers(model.model, conds)
    learn_layers(model.model, conds)
    assert len(asked) == 1
