"""The training loop: accumulation, errors, learning rates; and the checks of the config."""

import pytest
import torch
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.adapters.dropout import Dropout
from bespoke.training.errors import InputError
from bespoke.training.loop import NotANumber, Training
from torch import nn
from toy_training import NAME, copy_of, one_layer, train_config


def mean_square(layer, x=None):
    return lambda micro: layer(torch.ones(1, 10) if x is None else x).square().mean()


def test_accumulation_is_the_mean_gradient():
    layer, adapters = one_layer()
    nn.init.normal_(adapters[NAME].up)
    data = torch.randn(4, 10)
    start = copy_of(adapters)

    def run(accumulation, batch):
        adapters.load_state_dict(start)
        with adapters.attached():

            def loss(i):
                return layer(data[i * batch : (i + 1) * batch]).square().mean()

            list(Training(adapters, loss, train_config(steps=1, gradient_accumulation=accumulation)))
        return copy_of(adapters)

    whole, parts = run(1, 4), run(4, 1)
    for key in whole:
        assert torch.allclose(whole[key], parts[key], atol=1e-5)


def test_zero_gradient_is_an_error_at_the_first_step():
    _, adapters = one_layer()
    up, down = adapters[NAME].up, adapters[NAME].down
    with pytest.raises(InputError, match="gradient is zero"):
        list(Training(adapters, lambda i: (up * 0).sum() + (down * 0).sum(), train_config()))
    with pytest.raises(InputError, match="no gradient"):
        list(Training(adapters, lambda i: up.sum(), train_config()))


@pytest.mark.parametrize(("rank", "dropout"), [(3, Dropout(module=0.6)), (1, Dropout(rank=0.6))])
@pytest.mark.parametrize("seed", range(8))
def test_a_step_in_which_dropout_leaves_out_everything_learns_nothing_and_goes_on(rank, dropout, seed):
    """kohya's rule drops each layer (or rank) on its own, so a small LoRA is left out whole in some steps.

    Such a step has the loss of the bare layer and a gradient of zero; among eight seeds the first step is such, too. A
    gradient that is zero for another reason is an error as before.
    """
    layer, _ = one_layer()
    adapters = AdapterSet(LoraAdapter, {NAME: layer}, AdapterConfig(rank, 1.0, 0), torch.device("cpu"), dropout=dropout)
    nn.init.normal_(adapters[NAME].up)
    x, bare = torch.ones(1, 10), layer(torch.ones(1, 10)).square().mean().item()

    def loss(micro):
        with adapters.dropping(seed, micro, [0]):
            return layer(x).square().mean()

    with adapters.attached():
        steps = list(Training(adapters, loss, train_config(steps=12)))
    zero = [step.grad_norm == 0.0 for step in steps]
    assert any(zero)
    assert not all(zero)
    assert all(step.loss == bare for step in steps if step.grad_norm == 0.0)
    with pytest.raises(InputError, match="gradient is zero"), adapters.attached():
        list(Training(adapters, lambda micro: loss(micro) * 0.0, train_config(steps=1)))


def test_a_nan_stops_the_run_with_the_last_good_state():
    layer, adapters = one_layer()
    nn.init.normal_(adapters[NAME].up)

    def loss(i):
        value = layer(torch.ones(1, 10)).square().mean()
        return value * float("nan") if i == 2 else value

    steps, good = [], None

    def run():
        nonlocal good
        for step in Training(adapters, loss, train_config(steps=5)):
            steps.append(step.step)
            good = copy_of(adapters)

    with adapters.attached(), pytest.raises(NotANumber, match="step 3"):
        run()
    assert steps == [1, 2]
    assert all(torch.equal(good[key], value) for key, value in adapters.state_dict().items())
    assert all(torch.isfinite(value).all() for value in good.values())


def test_returned_states_do_not_change_with_further_steps():
    layer, adapters = one_layer()
    nn.init.normal_(adapters[NAME].up)
    training = Training(adapters, mean_square(layer), train_config(steps=2), validation_loss=lambda: 1.0)
    with adapters.attached():
        steps = iter(training)
        next(steps)
        current, state = training.current(), training.state()
        kept = {key: value.clone() for key, value in current.items()}
        next(steps)
    assert not torch.equal(kept[f"{NAME}.lora_up.weight"], adapters[NAME].up)
    for handed_out in (current, state.trained):
        assert all(torch.equal(handed_out[key], value) for key, value in kept.items())


def test_learning_rates_follow_the_schedule():
    layer, adapters = one_layer()
    nn.init.normal_(adapters[NAME].up)

    def rates(**changes):
        with adapters.attached():
            return [step.learning_rate for step in Training(adapters, mean_square(layer), train_config(**changes))]

    # The warm-up has no step at rate 0, which would not learn.
    assert rates(steps=4, warmup_steps=2) == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert rates(steps=4, lr_schedule="linear") == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert rates(steps=2, lr_schedule="cosine") == pytest.approx([1e-2, 5e-3])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"lr_schedule": "wobbly"}, "wobbly"),
        ({"warmup_steps": 3}, "warmup_steps is 3 of 3"),
    ],
)
def test_bad_settings_name_value_and_remedy(changes, word):
    with pytest.raises(InputError, match=word) as error:
        train_config(**changes)
    assert "give" in str(error.value) or "choose" in str(error.value)
