"""What one number, the strength, means: five contracts in use, as functions on noise schedules.

A noise schedule is a tensor of sigmas that falls to 0, [steps + 1]. Image to image adds noise to a picture up to one of
them and denoises from there; the contracts differ in which one, for the same strength s and number of steps N:

* noise level: sigma of the time 1 - s, wherever it falls between the schedule's steps; the first step is cut to fit.
* diffusers: the last min(int(N s), N) steps. (StableDiffusionImg2ImgPipeline.get_timesteps, also SDXL.)
* diffusers flow: from step int(max(N - min(N s, N), 0)). (StableDiffusion3Img2ImgPipeline and Flux, get_timesteps.)
* a1111: the last int(min(s, .999) N) + 1 steps. (AUTOMATIC1111 web UI, setup_img2img_steps.)
* comfy: the last N steps of a schedule of int(N / s). (ComfyUI's KSampler, set_steps.)

In every contract strength 0 runs nothing and strength 1 runs the whole schedule. The products stay floating-point
products, as in those programs: .58 * 50 is 28.999..., which gives 28 steps and not 29.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from ..bridge.errors import InputError

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
TABLES_END = 4_096  # schedules longer than this have used every entry of the usual tables of 1,000 timesteps

COMFY_WHOLE = 0.9999  # KSampler takes a denoise above this for 1
A1111_MOST = 0.999  # the web UI's cap, so that int(s N) stays below N

Schedule = Callable[[int], Tensor]  # a number of steps -> sigmas, [about that many + 1]


@dataclass(frozen=True)
class Strength:
    """How much to change: the dial and what it means.

    strength: 0 (nothing) to 1 (everything). steps: 1 to 10,000. exact_steps: the number of steps that run is `steps`,
    taken from a schedule long enough; without it, `steps` is the length of the whole schedule.
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
        """Whether this is the whole schedule, as KSampler runs it at denoise 1."""
        return self.strength > COMFY_WHOLE if self.contract == COMFY else self.strength == STRENGTH_MAX


@dataclass(frozen=True)
class Plan:
    """The part of a schedule that runs. sigmas: [run + 1], empty if nothing runs; whole: the schedule it is cut
    from."""

    request: Strength
    sigmas: Tensor
    whole: Tensor
    notes: list[str] = field(default_factory=list)

    @property
    def run(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    @property
    def total(self) -> int:
        return len(self.whole) - 1


def steps_run(contract: str, steps: int, strength: float) -> int:
    """How many steps of a schedule of `steps` run, in the contracts that cut a schedule between two of its steps."""
    if contract == DIFFUSERS:
        return min(int(steps * strength), steps)
    if contract == DIFFUSERS_FLOW:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    if contract == A1111:
        return int(min(strength, A1111_MOST) * steps) + 1
    raise ValueError(contract)


def length_for(contract: str, steps: int, strength: float) -> int:
    """The length of the schedule of which `steps` run, nearest to steps / strength."""
    if contract == COMFY:
        return int(steps / strength)
    if contract == A1111:  # its own option "do exactly the number of steps the slider specifies"
        return int(steps / min(strength, A1111_MOST))
    about = int(steps / strength)
    fitting = [n for n in range(max(about - 2, steps), about + 3) if steps_run(contract, n, strength) == steps]
    return min(fitting, key=lambda n: abs(n * strength - steps))


def plan(request: Strength, schedule: Schedule, start_sigma: float) -> Plan:
    """Choose the sigmas to run.

    schedule: the sampler's schedule for a number of steps; start_sigma: the model's sigma at the time 1 - strength,
    used by the noise level contract alone. Raises InputError if the schedule cannot give what is asked.
    """
    steps, strength, contract = request.steps, request.strength, request.contract
    if strength == STRENGTH_MIN or request.whole:
        whole, notes = _asked(schedule, steps)
        return Plan(request, whole if request.whole else whole[:0], whole, notes)
    if contract == NOISE_LEVEL:
        if request.exact_steps:
            return _noise_level_exact(request, schedule, start_sigma)
        whole, notes = _asked(schedule, steps)
        return Plan(request, from_noise_level(whole, start_sigma), whole, notes)
    if request.exact_steps or contract == COMFY:
        return _last_steps(request, schedule)
    whole, notes = _asked(schedule, steps)
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
    """Sigmas from exactly `start_sigma` down the schedule `whole` [N + 1]; never more than N steps.

    The start falls somewhere into one of the schedule's steps and leaves a fraction f of it, 0 < f <= 1, to run. Were
    that run as it is, samplers that remember earlier steps (dpmpp_2m, deis, ipndm_v, uni_pc, the sde ones) would
    extrapolate from a step of almost no length: 4 steps of dpmpp_2m_sde then end 28 standard deviations off. So the
    first two steps share their length, (1 + f) / 2 each, and the remaining sigmas are the schedule's own.
    """
    if start_sigma <= 0.0:
        return whole[:0]
    start = torch.tensor([start_sigma], dtype=whole.dtype)
    # Some schedules begin below the model's highest sigma: a start above their first sigma takes that one's place.
    below = whole[whole < start][-(len(whole) - 1) :]
    above = whole[: len(whole) - len(below)]
    if len(below) < 2 or above[-1] < start:
        return torch.cat([start, below])
    fraction = (start / below[0]).log() / (above[-1] / below[0]).log()
    if below[1] > 0:
        shift = (1.0 - fraction) / 2.0
        below = torch.cat([below[:1] * (below[1] / below[0]) ** shift, below[1:]])
    elif fraction < 0.5:  # no step above 0 to share with: a short remainder joins the last step
        below = below[1:]
    return torch.cat([start, below])


def _asked(schedule: Schedule, steps: int) -> tuple[Tensor, list[str]]:
    """The schedule for a number of steps, and what to say if it has another length. Raises InputError if it is none."""
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
    """The last `steps` of a schedule stretched so that they begin at the strength."""
    whole, notes = _asked(schedule, length_for(request.contract, request.steps, request.strength))
    got = len(whole) - 1
    if got < request.steps:
        if request.contract != COMFY:
            raise InputError(
                f"the scheduler gives {got} steps at most here, {request.steps} were asked for; choose another "
                "scheduler, or switch exact_steps off"
            )
        notes.append("So the whole schedule runs, from pure noise, whatever the strength: KSampler does the same.")
    return Plan(request, whole[-(request.steps + 1) :], whole, notes)


def _noise_level_exact(request: Strength, schedule: Schedule, start_sigma: float) -> Plan:
    """`steps` steps from exactly `start_sigma`, by the longest schedule with one sigma less than that below it.

    The longest, because there the next sigma above the start is close by: the first step is almost a full one.
    """
    between = request.steps - 1  # sigmas below the start and above 0
    if between == 0:
        whole, notes = _asked(schedule, 1)
        return Plan(request, torch.tensor([start_sigma, 0.0]), whole, notes)

    def levels(length: int) -> Tensor:
        whole, _ = _asked(schedule, length)
        return whole[(whole > 0) & (whole < start_sigma)].unique_consecutive()

    # The number of levels grows with the length: double until there are too many, then bisect. A scheduler that picks
    # from a table of training timesteps has no more to give at some length.
    fits, over = min(2, request.steps), request.steps
    count, before = len(levels(over)), -1
    while count <= between and over < LONGEST_SCHEDULE and not (over > TABLES_END and count == before):
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
    # Some schedulers skip lengths: of too many levels, as many as are needed are taken, evenly.
    chosen = chosen[(torch.arange(1, between + 1) * len(chosen)) // between - 1]
    whole = schedule(length).to("cpu", torch.float32)
    sigmas = torch.cat([whole.new_tensor([start_sigma]), chosen, whole.new_zeros(1)])
    return Plan(request, sigmas, whole)
