"""The five contracts of strength as arithmetic on schedules, without ComfyUI."""

import dataclasses
import math

import pytest
import torch
from bespoke.nodes.img2img.strength import (
    A1111,
    COMFY,
    CONTRACTS,
    DIFFUSERS,
    DIFFUSERS_FLOW,
    NOISE_LEVEL,
    Strength,
    from_noise_level,
    length_for,
    plan_sigmas,
    steps_run,
)
from bespoke.training.errors import InputError

SIGMA_MAX, SIGMA_MIN = 14.6, 0.03


def even(steps):
    """A schedule that falls by the same factor at each step, and then to 0."""
    if steps == 1:
        return torch.tensor([SIGMA_MAX, 0.0])
    return torch.cat([torch.logspace(math.log10(SIGMA_MAX), math.log10(SIGMA_MIN), steps), torch.zeros(1)])


def sigma_at(strength):
    return SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** strength


def plan(strength, steps=20, contract=NOISE_LEVEL, exact=False, schedule=even):
    return plan_sigmas(Strength(strength, steps, contract, exact), schedule, sigma_at(strength))


# --- How many steps -----------------------------------------------------------------------------------------------


def test_step_counts_use_the_float_product():
    assert 0.58 * 50 < 29  # 28.999999999999996
    assert plan(0.58, 50, DIFFUSERS).run == 28
    assert plan(0.58, 50, DIFFUSERS_FLOW).run == 29
    assert plan(0.58, 50, A1111).run == 29


@pytest.mark.parametrize(
    ("contract", "runs"),
    [
        (DIFFUSERS, {0.01: 0, 0.04: 0, 0.05: 1, 0.5: 10, 0.75: 15, 0.99: 19, 1.0: 20}),
        (DIFFUSERS_FLOW, {0.01: 1, 0.05: 1, 0.51: 11, 0.75: 15, 0.96: 20, 1.0: 20}),
        (A1111, {0.01: 1, 0.05: 2, 0.5: 11, 0.75: 16, 0.95: 20, 1.0: 20}),
        (COMFY, {0.01: 20, 0.5: 20, 0.9999: 20, 1.0: 20}),
        (NOISE_LEVEL, {0.001: 1, 0.02: 1, 0.05: 2, 0.5: 11, 0.999: 20, 1.0: 20}),
    ],
)
def test_steps_that_run_of_20(contract, runs):
    assert {strength: plan(strength, 20, contract).run for strength in runs} == runs


def test_floor_and_ceiling_differ_by_at_most_one():
    cells = [(n, i / 100) for n in range(1, 101) for i in range(1, 101)]
    floor = [steps_run(DIFFUSERS, n, x) for n, x in cells]
    ceil = [steps_run(DIFFUSERS_FLOW, n, x) for n, x in cells]
    assert sum(k == 0 for k in floor) == 473
    assert {b - a for a, b in zip(floor, ceil, strict=True)} == {0, 1}


def test_a1111_is_the_web_uis_arithmetic():
    """modules/sd_samplers_common.py, setup_img2img_steps, and sd_samplers_kdiffusion.py, sample_img2img."""
    for steps in range(1, 101):
        sigmas = even(steps)
        for strength in (i / 100 for i in range(1, 101)):
            t_enc = int(min(strength, 0.999) * steps)
            assert torch.equal(plan(strength, steps, A1111).sigmas, sigmas[steps - t_enc - 1 :]), (steps, strength)


def test_a1111_with_exact_steps_is_the_web_uis_option_for_it():
    for steps in (1, 4, 20, 33):
        for strength in (0.05, 0.3, 0.58, 0.75, 0.99):
            total = int(steps / min(strength, 0.999))
            assert torch.equal(plan(strength, steps, A1111, exact=True).sigmas, even(total)[total - (steps - 1) - 1 :])


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 20, 100])
def test_exact_steps_run_exactly_that_many(contract, steps):
    for strength in (i / 20 for i in range(1, 21)):
        chosen = plan(strength, steps, contract, exact=True)
        assert chosen.run == steps, strength
        assert (chosen.sigmas.diff() < 0).all()
        assert chosen.sigmas[-1] == 0


@pytest.mark.parametrize("contract", [DIFFUSERS, DIFFUSERS_FLOW])
def test_the_stretched_schedule_is_the_one_that_this_contract_cuts_to_the_steps(contract):
    for steps in range(1, 60):
        for strength in (i / 100 for i in range(1, 100)):
            total = length_for(contract, steps, strength)
            assert steps_run(contract, total, strength) == steps
            assert abs(total * strength - steps) <= 1


# --- Both ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("exact", [False, True])
def test_strength_0_runs_nothing_and_strength_1_the_whole_schedule(contract, exact):
    nothing, everything = plan(0.0, 20, contract, exact), plan(1.0, 20, contract, exact)
    assert nothing.run == 0
    assert nothing.sigmas.shape == (0,)
    assert torch.equal(everything.sigmas, even(20))


def test_a_step_count_of_0_by_rounding_says_so_and_names_the_first_strength_that_works():
    chosen = plan(0.04, 20, DIFFUSERS)
    assert chosen.run == 0
    assert "0.04 of 20 steps is less than one step" in chosen.notes[0]
    assert "0.05" in chosen.notes[0]
    assert plan(0.05, 20, DIFFUSERS).run == 1


# --- Noise level --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("exact", [False, True])
def test_noise_level_starts_exactly_there(steps, exact):
    for strength in (i / 1000 for i in range(1, 1000, 7)):
        chosen = plan(strength, steps, exact=exact)
        assert float(chosen.sigmas[0]) == float(torch.tensor(sigma_at(strength)))
        assert 1 <= chosen.run <= steps
        assert (chosen.sigmas.diff() < 0).all()
        assert chosen.sigmas[-1] == 0


def test_noise_level_keeps_the_schedule_after_the_first_two_steps():
    whole = even(20)
    for strength in (0.2, 0.5, 0.9):
        sigmas = plan(strength).sigmas
        assert torch.equal(sigmas[2:], whole[-len(sigmas[2:]) :])
        first, second = (sigmas[:2] / sigmas[1:3]).log().tolist()
        assert first == pytest.approx(second, rel=1e-4)  # both steps share the remainder, so no step is nearly 0
        full = math.log(SIGMA_MAX / SIGMA_MIN) / 19
        assert full / 2 < first <= full * 1.0001


def test_noise_level_on_a_step_of_the_schedule_is_the_schedule():
    whole = even(20)
    assert torch.equal(from_noise_level(whole, float(whole[9])), whole[9:])


def test_noise_level_has_no_short_step_however_close_the_start_is_to_a_step():
    whole = even(10)
    for i in range(1, 9):
        close = from_noise_level(whole, float(whole[i]) * 1.0001)
        assert len(close) == len(whole[i:]) + (i < 8) + (i == 8)
        assert float((close[:-2] / close[1:-1]).log().min()) > 0.33
    assert torch.equal(from_noise_level(whole, float(whole[9]) * 1.0001)[1:], torch.zeros(1))


def test_a_start_above_the_first_sigma_replaces_it():
    low = torch.tensor([8.0, 2.0, 0.5, 0.0])  # as ddim_uniform, which starts below the model's highest sigma
    assert from_noise_level(low, 9.0).tolist() == [9.0, 2.0, 0.5, 0.0]


def test_a_start_below_every_sigma_is_one_step():
    assert from_noise_level(even(20), 0.01).tolist() == pytest.approx([0.01, 0.0])
    assert from_noise_level(even(20), 0.0).tolist() == []


def test_every_change_of_strength_changes_the_start_with_4_steps():
    starts = [float(plan(i / 1000, 4).sigmas[0]) for i in range(1, 1000)]
    assert all(a < b for a, b in zip(starts, starts[1:], strict=False))


# --- Schedules shorter than requested ----------------------------------------------------------------------


def short(steps):
    """As ddim_uniform or beta, which cannot give more steps than they know timesteps."""
    return even(min(steps, 15))


@pytest.mark.parametrize("contract", [DIFFUSERS, DIFFUSERS_FLOW, A1111])
def test_a_short_schedule_is_cut_by_its_own_length_and_reported(contract):
    chosen = plan(0.5, 20, contract, schedule=short)
    assert chosen.run == steps_run(contract, 15, 0.5)
    assert torch.equal(chosen.sigmas, even(15)[-(chosen.run + 1) :])
    assert chosen.notes == ["The scheduler gave 15 steps where 20 were asked for."]


def test_a_schedule_too_short_for_exact_steps_is_an_error_and_in_the_comfy_contract_a_warning():
    for contract in (DIFFUSERS, DIFFUSERS_FLOW, A1111, NOISE_LEVEL):
        with pytest.raises(InputError, match="another scheduler"):
            plan(0.5, 20, contract, exact=True, schedule=short)
    chosen = plan(0.5, 20, COMFY, schedule=short)
    assert torch.equal(chosen.sigmas, even(15))
    assert "pure noise" in chosen.notes[-1]


def test_a_dense_schedule_that_skips_lengths_still_gives_the_exact_number():
    def jumps(steps):  # 7, 14, 21, ... steps only
        return even(7 * math.ceil(steps / 7))

    for steps in (3, 5, 12):
        chosen = plan(0.5, steps, exact=True, schedule=jumps)
        assert chosen.run == steps
        assert (chosen.sigmas.diff() < 0).all()


@pytest.mark.parametrize("sigmas", [[], [1.0], [math.nan, 0.0]])
def test_an_unusable_schedule_is_an_error(sigmas):
    with pytest.raises(InputError, match="no usable sigmas for 20 steps"):
        plan(0.5, schedule=lambda steps: torch.tensor(sigmas))


# --- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [math.nan, -0.01, 1.01, math.inf, -math.inf, "0.5", None])
def test_a_strength_outside_0_to_1_is_an_error_that_names_it(strength):
    with pytest.raises(InputError, match=f"strength is {strength}; give a number from 0"):
        Strength(strength, 20)


@pytest.mark.parametrize("steps", [0, -1, 10_001])
def test_steps_outside_the_range_are_an_error(steps):
    with pytest.raises(InputError, match=f"steps is {steps}; give a whole number from 1 to 10000"):
        Strength(0.5, steps)


def test_an_unknown_contract_is_an_error():
    with pytest.raises(InputError, match="'forge'; give one of noise level, diffusers, diffusers flow, a1111, comfy"):
        Strength(0.5, 20, "forge")


def test_a_schedule_of_more_than_a_million_steps_is_an_error():
    with pytest.raises(InputError, match="raise the strength or lower the steps"):
        plan(1e-6, 20, COMFY)


def test_a_request_is_frozen_and_the_schedule_is_not_written_to():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Strength(0.5, 20).strength = 1.0
    whole = even(20)
    for contract in CONTRACTS:
        plan(0.37, 20, contract, schedule=lambda steps: whole)
    assert torch.equal(whole, even(20))
