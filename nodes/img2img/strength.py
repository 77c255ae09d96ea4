"""Which part of a noise schedule runs for a strength, by five contracts in use.

A noise schedule is a tensor of sigmas that falls to 0, [steps + 1]. Image to image adds noise to a picture up to one of
these sigmas and denoises from there. The contracts differ in which one, for the same strength s and number of steps N:

* noise level: the sigma at 1 - s of the model's training schedule, also between two of the schedule's steps.
* diffusers: the last min(int(N s), N) steps. (StableDiffusionImg2ImgPipeline.get_timesteps, also SDXL.)
* diffusers flow: from step int(max(N - min(N s, N), 0)). (StableDiffusion3Img2ImgPipeline and Flux, get_timesteps.)
* a1111: the last int(min(s, .999) N) + 1 steps. (AUTOMATIC1111 web UI, setup_img2img_steps.)
* comfy: the last N steps of a schedule of int(N / s). (ComfyUI's KSampler, set_steps.)

In every contract strength 0 runs nothing and strength 1 runs the whole schedule. The products are floating-point
products, as in those programs: .58 * 50 is 28.999..., which gives 28 steps and not 29.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from ...training.errors import InputError

NOISE_LEVEL, DIFFUSERS, DIFFUSERS_FLOW, A1111, COMFY = CONTRACTS = (
    "noise level",
    "diffusers",
    "diffusers flow",
    "a1111",
    "comfy",
)
STRENGTH_MIN, STRENGTH_MAX = 0.0, 1.0
STEPS_MIN, STEPS_MAX = 1, 10_000
LONGEST_SCHEDULE = 1_000_000  # steps of a stretched schedule; KSampler's own widgets reach this
# A schedule of more steps has used every entry of a table of 1,000 training timesteps: a longer one adds no sigma.
TABLE_EXHAUSTED = 4_096

COMFY_WHOLE = 0.9999  # KSampler takes a denoise above this for 1
A1111_MOST = 0.999  # the web UI's cap, so that int(s N) stays below N

Schedule: TypeAlias = Callable[[int], Tensor]  # a number of steps -> sigmas [about that many + 1]


@dataclass(frozen=True)
class Strength:
    """How much of a picture is denoised again.

    strength: 0 (nothing) to 1 (everything). steps: 1 to 10,000. contract: one of `CONTRACTS`. exact_steps: exactly
    `steps` steps run, of a schedule that is long enough; without it, `steps` is the length of the whole schedule.
    Raises `InputError` for a value out of range.
    """

    strength: float
    steps: int
    contract: str = NOISE_LEVEL
    exact_steps: bool = False

    def __post_init__(self):
        if not isinstance(self.strength, Real) or not STRENGTH_MIN <= self.strength <= STRENGTH_MAX:
            raise InputError(f"strength is {self.strength}; give a number from 0 (unchanged) to 1 (denoise wholly)")
        if not STEPS_MIN <= self.steps <= STEPS_MAX:
            raise InputError(f"steps is {self.steps}; give a whole number from {STEPS_MIN} to {STEPS_MAX}")
        if self.contract not in CONTRACTS:
            raise InputError(f"contract is {self.contract!r}; give one of {', '.join(CONTRACTS)}")

    @property
    def whole(self) -> bool:
        """Whether the whole schedule runs, as in KSampler at denoise 1."""
        return self.strength > COMFY_WHOLE if self.contract == COMFY else self.strength == STRENGTH_MAX


@dataclass(frozen=True)
class Plan:
    """The part of a schedule that runs.

    sigmas: [run + 1], [0] if nothing runs. whole: the schedule they are cut from, [total + 1]. notes: for the report.
    """

    request: Strength
    sigmas: Tensor
    whole: Tensor
    notes: list[str] = field(default_factory=list)

    @property
    def run(self) -> int:
        """Steps that run."""
        return max(len(self.sigmas) - 1, 0)

    @property
    def total(self) -> int:
        """Steps of the whole schedule."""
        return len(self.whole) - 1


def steps_run(contract: str, steps: int, strength: float) -> int:
    """How many steps of a schedule of `steps` run, for diffusers, diffusers flow and a1111.

    These contracts cut a schedule between two of its steps. Raises `ValueError` for the other contracts.
    """
    if contract == DIFFUSERS:
        return min(int(steps * strength), steps)
    if contract == DIFFUSERS_FLOW:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    if contract == A1111:
        return int(min(strength, A1111_MOST) * steps) + 1
    raise ValueError(contract)


def length_for(contract: str, steps: int, strength: float) -> int:
    """The number of steps of the schedule of which exactly `steps` run, nearest to steps / strength."""
    if contract == COMFY:
        return int(steps / strength)
    if contract == A1111:  # its own option "do exactly the number of steps the slider specifies"
        return int(steps / min(strength, A1111_MOST))
    about = int(steps / strength)
    fitting = [n for n in range(max(about - 2, steps), about + 3) if steps_run(contract, n, strength) == steps]
    return min(fitting, key=lambda n: abs(n * strength - steps))


def plan_sigmas(request: Strength, schedule: Schedule, start_sigma: float) -> Plan:
    """The sigmas that run for a strength.

    schedule: the sampler's schedule for a number of steps. start_sigma: the model's sigma at 1 - strength of its
    training schedule; only the noise level contract reads it. Raises `InputError` if the schedule cannot give the
    sigmas.
    """
    steps, strength, contract = request.steps, request.strength, request.contract
    if strength == STRENGTH_MIN or request.whole:
        whole, notes = _checked_schedule(schedule, steps)
        return Plan(request, whole if request.whole else whole[:0], whole, notes)
    if contract == NOISE_LEVEL:
        if request.exact_steps:
            return _exact_steps_from_noise_level(request, schedule, start_sigma)
        whole, notes = _checked_schedule(schedule, steps)
        return Plan(request, from_noise_level(whole, start_sigma), whole, notes)
    if request.exact_steps or contract == COMFY:
        return _last_steps(request, schedule)
    whole, notes = _checked_schedule(schedule, steps)
    run = min(steps_run(contract, len(whole) - 1, strength), len(whole) - 1)
    if run == 0:
        least = next(s / 1000 for s in range(1, 1001) if steps_run(contract, len(whole) - 1, s / 1000) > 0)
        notes.append(
            f"{strength:g} of {len(whole) - 1} steps is less than one step, and this contract rounds down: the picture "
            f'comes back as it is. The first strength that changes it is {least:g}; the contract "noise level" has '
            "no such gap."
        )
    return Plan(request, whole[len(whole) - 1 - run :] if run else whole[:0], whole, notes)


def from_noise_level(whole: Tensor, start_sigma: float) -> Tensor:
    """Sigmas from exactly `start_sigma` down the schedule `whole` [N + 1]: [N + 1] or fewer, [0] for a start of 0.

    The start lies inside one of the schedule's steps, of which a fraction f, 0 < f <= 1, is left. A multistep sampler
    (dpmpp_2m, deis, ipndm_v, uni_pc, the sde ones) would extrapolate from that short first step: 4 steps of
    dpmpp_2m_sde end 28 standard deviations off. So the first two steps share their length in log sigma, (1 + f) / 2
    each, and the remaining sigmas are the schedule's own.
    """
    if start_sigma <= 0.0:
        return whole[:0]
    start = torch.tensor([start_sigma], dtype=whole.dtype)
    # Some schedules begin below the model's highest sigma: a start above their first sigma replaces that one.
    below = whole[whole < start][-(len(whole) - 1) :]
    above = whole[: len(whole) - len(below)]
    if len(below) < 2 or above[-1] < start:
        return torch.cat([start, below])
    fraction = (start / below[0]).log() / (above[-1] / below[0]).log()
    if below[1] > 0:
        shift = (1.0 - fraction) / 2.0
        below = torch.cat([below[:1] * (below[1] / below[0]) ** shift, below[1:]])
    elif fraction < 0.5:  # the next step ends at 0 and cannot share: a short remainder joins it
        below = below[1:]
    return torch.cat([start, below])


def _checked_schedule(schedule: Schedule, steps: int) -> tuple[Tensor, list[str]]:
    """(the schedule for a number of steps, as fp32 on the CPU, a note if it has another length).

    Raises `InputError` for a schedule that is too long, has no step or is not finite.
    """
    if steps > LONGEST_SCHEDULE:
        raise InputError(
            f"this needs a schedule of {steps} steps, more than {LONGEST_SCHEDULE}; raise the strength or lower "
            "the steps"
        )
    whole = schedule(steps).to("cpu", torch.float32)
    if len(whole) < 2 or not torch.isfinite(whole).all():
        raise InputError(
            f"the scheduler gives no usable sigmas for {steps} steps; choose another scheduler or more steps"
        )
    got = len(whole) - 1
    return whole, [] if got == steps else [f"The scheduler gave {got} steps where {steps} were asked for."]


def _last_steps(request: Strength, schedule: Schedule) -> Plan:
    """The last `steps` steps of a schedule that is long enough for them to begin at the strength."""
    whole, notes = _checked_schedule(schedule, length_for(request.contract, request.steps, request.strength))
    got = len(whole) - 1
    if got < request.steps:
        if request.contract != COMFY:
            raise InputError(
                f"the scheduler gives {got} steps at most here, {request.steps} were asked for; choose another "
                "scheduler, or switch exact_steps off"
            )
        notes.append("So the whole schedule runs, from pure noise, whatever the strength: KSampler does the same.")
    return Plan(request, whole[-(request.steps + 1) :], whole, notes)


def _exact_steps_from_noise_level(request: Strength, schedule: Schedule, start_sigma: float) -> Plan:
    """`steps` steps from exactly `start_sigma`: the longest schedule with `steps` - 1 sigmas between it and 0.

    In the longest one the schedule's next sigma above the start is close, so the first step is almost a full one.
    """
    between = request.steps - 1  # sigmas below the start and above 0
    if between == 0:
        whole, notes = _checked_schedule(schedule, 1)
        return Plan(request, torch.tensor([start_sigma, 0.0]), whole, notes)

    def levels(length: int) -> Tensor:
        whole, _ = _checked_schedule(schedule, length)
        return whole[(whole > 0) & (whole < start_sigma)].unique_consecutive()

    # The number of levels grows with the length: double until there are too many, then bisect. A scheduler that picks
    # from a table of training timesteps gives no more levels from some length on.
    fits, over = min(2, request.steps), request.steps
    count, before = len(levels(over)), -1
    while count <= between and over < LONGEST_SCHEDULE and not (over > TABLE_EXHAUSTED and count == before):
        fits, over, before = over, min(2 * over, LONGEST_SCHEDULE), count
        count = len(levels(over))
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if len(levels(middle)) <= between else (fits, middle)
    length = fits if len(levels(fits)) >= between else over
    chosen = levels(length)
    if len(chosen) < between:
        raise InputError(
            f"the scheduler has {len(chosen)} noise levels below strength {request.strength:g}, too few for exactly "
            f"{request.steps} steps; choose another scheduler, fewer steps or switch exact_steps off"
        )
    # Some schedulers skip lengths and give too many levels: take as many as are needed, evenly spread.
    chosen = chosen[(torch.arange(1, between + 1) * len(chosen)) // between - 1]
    whole = schedule(length).to("cpu", torch.float32)
    sigmas = torch.cat([whole.new_tensor([start_sigma]), chosen, whole.new_zeros(1)])
    return Plan(request, sigmas, whole)
