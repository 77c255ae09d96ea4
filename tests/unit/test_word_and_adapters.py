"""A word and adapters as one trainable: two rates, a word that rests, one state; and the words of a LoRA's file."""

import pytest
import torch
from bespoke.training.bundles import bundled, check_bundle_name, split_bundle
from bespoke.training.config import TrainConfig
from bespoke.training.embedding import PseudoWord
from bespoke.training.errors import InputError
from bespoke.training.loop import Training
from bespoke.training.optimizers import OPTIMIZERS
from bespoke.training.randomness import noise
from bespoke.training.word_and_adapters import WordAndAdapters
from safetensors.torch import load_file, save_file
from toy_training import one_layer

CPU = torch.device("cpu")
WITH_RATES = [name for name, kind in OPTIMIZERS.items() if not kind.package and not kind.finds_rate and name != "Muon"]


def problem(word_steps=100, word_rate=2e-2, **limits):
    """(trainable, the layer's adapters, loss): a layer with an adapter reads a word beside noise."""
    layer, adapters = one_layer(12, 9, rank=3, alpha=3)
    word = PseudoWord({"clip_l": torch.linspace(-1, 1, 12)[None]}, limits.get("norm_limit"), CPU)
    trainable = WordAndAdapters(
        adapters, word, {"cat": {"clip_l": "clip_l"}}, word_rate, word_steps, word_is_rare=False
    )
    target = torch.randn(9, generator=torch.Generator().manual_seed(4))

    def loss(micro):
        return (layer(noise(1, micro, 0, (5, 12)) + word.vectors["clip_l"]) - target).square().mean()

    return trainable, loss


def train(trainable, loss, steps=8, stop=None, state=None, **changes):
    settings = {"learning_rate": 3e-2, "batch_size": 1, "seed": 0, "max_grad_norm": 0.5} | changes
    training, states = Training(trainable, loss, TrainConfig(steps=steps, **settings), state=state), []
    with trainable.adapters.attached():
        for step in training:
            states.append(training.current())
            if step.step == stop:
                break
    return training, states


def word_of(state):
    return state["bundle_emb.cat.clip_l"]


def test_both_groups_have_their_own_rate():
    """By hand: the first step of AdamW moves each number by its group's rate, where the gradient is not near 0."""
    trainable, loss = problem()
    before = {key: value.clone() for key, value in trainable.state_dict().items()}
    _, (after, *_) = train(trainable, loss, stop=1, max_grad_norm=0.0, lr_schedule="constant")
    moved = {key: (after[key] - before[key]).abs().max().item() for key in before if not key.endswith("alpha")}
    up, down, word = (next(v for k, v in moved.items() if part in k) for part in ("lora_up", "lora_down", "bundle_emb"))
    assert word == pytest.approx(2e-2, rel=1e-3)
    assert up == pytest.approx(16 * 3e-2, rel=1e-3)  # LoRA+
    assert down == 0  # the up factor is zero at first, so it has no gradient
    rates = [rate for _, rate in trainable.parameter_groups(3e-2)]
    assert sorted(rates) == pytest.approx([2e-2, 3e-2, 16 * 3e-2])


@pytest.mark.parametrize("optimizer", WITH_RATES)
def test_the_word_rests_and_the_adapters_go_on(optimizer):
    """The oracle is the same run in which the word learns to the end: equal up to the step, to the bit, then still."""
    whole, loss = problem()
    _, all_steps = train(whole, loss, optimizer=optimizer)
    cut, loss = problem(word_steps=3)
    _, states = train(cut, loss, optimizer=optimizer)
    for key in states[0]:
        assert all(torch.equal(states[i][key], all_steps[i][key]) for i in range(3))
    assert all(torch.equal(word_of(state), word_of(states[2])) for state in states[3:])
    assert not torch.equal(word_of(all_steps[3]), word_of(all_steps[2]))
    up = next(key for key in states[0] if "lora_up" in key)
    assert all(not torch.equal(a[up], b[up]) for a, b in zip(states[2:], states[3:], strict=False))


def test_the_gradient_of_a_resting_word_is_not_clipped_with():
    """With the word at rest from the start, the adapters learn what they learn where no word is trained at all."""
    resting, loss = problem(word_steps=0)
    _, states = train(resting, loss)
    alone, loss = problem()
    adapters = alone.adapters
    training = Training(
        adapters, loss, TrainConfig(steps=8, learning_rate=3e-2, batch_size=1, seed=0, max_grad_norm=0.5)
    )
    with adapters.attached():
        for _ in training:
            pass
    expected = training.current()
    assert all(torch.equal(states[-1][key], expected[key]) for key in expected)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_is_bit_identical(tmp_path, stop):
    """Stopped before, at and after the step from which the word rests."""
    from bespoke.training.checkpoint import pack, unpack
    from safetensors import safe_open

    whole, loss = problem(word_steps=3)
    _, expected = train(whole, loss, ema=0.5)
    first, loss = problem(word_steps=3)
    training, _ = train(first, loss, stop=stop, ema=0.5)
    tensors, meta = pack(training.state())
    save_file(tensors, tmp_path / "state.safetensors", meta)
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        state = unpack(load_file(tmp_path / "state.safetensors"), file.metadata())
    second, loss = problem(word_steps=3)
    _, states = train(second, loss, state=state, ema=0.5)
    assert all(torch.equal(states[-1][key], expected[-1][key]) for key in expected[-1])


def test_a_limit_holds_for_both():
    trainable, loss = problem(norm_limit={"clip_l": 1.0})
    assert trainable.is_limited
    _, states = train(trainable, loss)
    assert word_of(states[-1]).norm() <= 1.0 + 1e-6


def test_words_of_a_file_are_told_from_its_layers():
    """The keys are those of the three programs' own code: webui's reader, OneTrainer's and hcp-diffusion's writers."""
    vectors = torch.ones(2, 4)
    layer = {"lora_unet_a.lora_up.weight": torch.zeros(2, 2)}
    words = {
        "bundle_emb.cat.string_to_param.*": vectors,
        "bundle_emb.dog.clip_l": vectors,
        "bundle_emb.dog.clip_g": vectors,
        "bundle_emb.<tom>.clip_l_out": vectors,
        "bundle_emb.hcp.emb_params": vectors,
    }
    layers, found = split_bundle(layer | words)
    assert layers == layer
    assert {name: [*parts] for name, parts in found.items()} == {
        "cat": ["string_to_param.*"],
        "dog": ["clip_l", "clip_g"],
        "<tom>": ["clip_l_out"],
        "hcp": ["emb_params"],
    }
    assert bundled(found) == words
    with pytest.raises(InputError, match="'a.b', and programs read it up to the first dot; give a name without"):
        check_bundle_name("a.b")


def test_a_word_without_an_encoders_key_is_no_layer():
    """`bundle_emb.NAME`, as the bundle converter of sd-ext writes it. It is kept under a key that programs read."""
    vectors, layer = torch.ones(1, 4), {"lora_unet_a.lora_up.weight": torch.zeros(2, 2)}
    layers, found = split_bundle(layer | {"bundle_emb.my cat": vectors})
    assert layers == layer
    assert found == {"my cat": {"emb_params": vectors}}
    assert [*bundled(found)] == ["bundle_emb.my cat.emb_params"]


@pytest.mark.parametrize(
    "key", ["bundle_emb.", "bundle_emb..clip_l", "bundle_emb.cat.", "bundle_emb..string_to_param.*"]
)
def test_a_tensor_of_a_bundle_without_a_word_is_refused(key):
    with pytest.raises(InputError, match="is a word without a name or without a key .*; fetch the file again"):
        split_bundle({key: torch.ones(1, 4)})


def test_a_word_that_is_there_twice_is_refused():
    with pytest.raises(InputError, match="has the vectors of 'cat' twice, as bundle_emb.cat and bundle_emb.cat.emb_p"):
        split_bundle({"bundle_emb.cat.emb_params": torch.ones(1, 4), "bundle_emb.cat": torch.ones(1, 4)})
