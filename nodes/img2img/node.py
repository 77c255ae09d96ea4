"""The nodes of partial denoising."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ...training.errors import InputError
from ..bridge.errors import name_node_in_errors
from ..bridge.sampling import (
    fitting_latent,
    is_blank,
    noise_share,
    noised,
    sample,
    schedule_of,
    sigma_at,
    timestep_at,
    to_intermediate,
    without_penultimate,
)
from .plot import draw
from .report import describe
from .shown import sent_schedule
from .spacing import SPACINGS, spaced
from .strength import (
    CONTRACTS,
    NOISE_LEVEL,
    STEPS_MAX,
    STEPS_MIN,
    STRENGTH_MAX,
    STRENGTH_MIN,
    Plan,
    Strength,
    plan_sigmas,
)
from .variation import STRENGTH_MAX as VARIATION_MAX
from .variation import STRENGTH_MIN as VARIATION_MIN
from .variation import Variation, varied_noise

STRENGTH_DEFAULT, STEPS_DEFAULT = 0.75, 20

CONTRACT_TIP = (
    "What the strength number means. noise level: starts at exactly that noise, so every change of strength shows, "
    "with few steps too. diffusers and diffusers flow: as the Stable Diffusion and the SD3 / Flux pipelines count "
    "steps. a1111: as the web UI. comfy: as KSampler's denoise. Choose one of those to repeat a picture made there."
)
EXACT_TIP = (
    "Off: steps is the length of the whole schedule, and a lower strength runs fewer of them. On: that many steps run "
    "at any strength; slower, smoother. (The comfy contract always works so.)"
)


def strength_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=STRENGTH_DEFAULT,
        min=STRENGTH_MIN,
        max=STRENGTH_MAX,
        step=0.01,
        round=0.001,
        display_mode=io.NumberDisplay.slider,
        tooltip=tooltip,
    )


def scheduler_input() -> io.Combo.Input:
    return io.Combo.Input(
        "scheduler",
        options=[*comfy.samplers.KSampler.SCHEDULERS, *SPACINGS],
        tooltip=(
            "How the steps are spread over the noise levels. Those named diffusers repeat that library's "
            "timestep_spacing."
        ),
    )


def steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=STEPS_DEFAULT,
        min=STEPS_MIN,
        max=STEPS_MAX,
        tooltip=(
            "Steps of the whole schedule; below strength 1 fewer run, unless exact_steps is on. More is slower and "
            "finer."
        ),
    )


def contract_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "contract", options=list(CONTRACTS), default=NOISE_LEVEL, optional=True, advanced=True, tooltip=CONTRACT_TIP
        ),
        io.Boolean.Input("exact_steps", default=False, optional=True, advanced=True, tooltip=EXACT_TIP),
    ]


def variation_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "variation_seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            optional=True,
            advanced=True,
            tooltip=(
                "The seed of a second noise, which is mixed with that of seed. It does nothing at variation_strength 0."
            ),
        ),
        io.Float.Input(
            "variation_strength",
            default=0.0,
            min=VARIATION_MIN,
            max=VARIATION_MAX,
            step=0.01,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip=(
                "The share of the second noise, 0 to 1. 0: the picture of seed. About .1: similar pictures. 1: the "
                "noise of variation_seed, and its picture with samplers that add none."
            ),
        ),
    ]


def plan_for(model, request: Strength, scheduler: str, sampler_name: str) -> Plan:
    """The sigmas that run for a request. model: anything with `get_model_object("model_sampling")`.

    Raises `InputError` for names that ComfyUI does not know and for a schedule that cannot give the sigmas.
    """
    model_sampling = model.get_model_object("model_sampling")
    if scheduler in SPACINGS:
        schedule = without_penultimate(lambda steps: spaced(model_sampling, scheduler, steps), sampler_name)
    else:
        schedule = schedule_of(model, scheduler, sampler_name)
    return plan_sigmas(request, schedule, sigma_at(model_sampling, request.strength))


class PartialDenoise(io.ComfyNode):
    """Image to image by a strength, whose meaning is one of five contracts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokePartialDenoise",
            display_name="Bespoke Partial Denoise (img2img)",
            category="Bespoke/img2img",
            description=(
                "Image to image: add noise to a picture up to a level set by strength, and denoise from there. The "
                "report says how many steps run and how much of the picture is noise at the start."
            ),
            search_aliases=[
                "img2img",
                "image to image",
                "denoise strength",
                "SDEdit",
                "KSampler",
                "denoising strength",
                "a1111",
                "diffusers strength",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model: epsilon, v or flow."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The picture to start from, encoded by the model's VAE. A noise mask in it is used.",
                ),
                strength_input(
                    "How much changes: 0 returns the picture bit for bit, 1 ignores it. Around .3 textures change, "
                    "around .6 shapes."
                ),
                steps_input(),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "Classifier-free guidance scale. Higher values follow the prompt more, with harder "
                        "contrasts; 1 switches it off and is twice as fast."
                    ),
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="The sampling method. Methods differ in speed and sharpness; some add noise at each step.",
                ),
                scheduler_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise that is added. The same seed gives KSampler's noise, so the same picture.",
                ),
                *contract_inputs(),
                *variation_inputs(),
            ],
            has_intermediate_output=True,  # what the node sends is sent again where it is cached: see `sent_schedule`
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                io.Latent.Output(
                    display_name="start",
                    tooltip=(
                        "The noised picture that denoising started from, to look at. To sample again, use the original "
                        "latent and the sigmas."
                    ),
                ),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The noise levels that ran, for SamplerCustomAdvanced; empty if nothing ran.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many steps ran, from which noise level, and how much of the start was noise.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        strength,
        steps,
        cfg,
        sampler_name,
        scheduler,
        seed,
        contract=NOISE_LEVEL,
        exact_steps=False,
        variation_seed=0,
        variation_strength=0.0,
    ) -> io.NodeOutput:
        request = Strength(strength, steps, contract, exact_steps)
        variation = Variation(variation_seed, variation_strength)
        samples = fitting_latent(model, latent_image)
        chosen = plan_for(model, request, scheduler, sampler_name)
        if not request.whole and request.strength > 0 and is_blank(samples):
            raise InputError(
                f"latent_image is empty (all zeros), and strength {strength:g} keeps part of it; "
                "encode a picture with VAE Encode, or set strength to 1 to make one from noise alone"
            )
        model_sampling = model.get_model_object("model_sampling")
        report = describe(chosen, model_sampling)
        sent = sent_schedule(chosen, model_sampling, request, scheduler, sampler_name)
        if chosen.run == 0:
            return io.NodeOutput(latent_image, latent_image, chosen.sigmas, report, ui=sent)
        if variation.strength > 0.0:
            report += f"\nThe noise of seed {seed} is turned by {variation_strength:g} to seed {variation_seed}'s."
        noise = varied_noise(samples, seed, variation, latent_image)
        start = noised(model, samples, noise, chosen.sigmas)
        mask = latent_image.get("noise_mask")
        out = sample(model, samples, noise, chosen.sigmas, positive, negative, cfg, sampler_name, seed, mask)
        # As KSampler: the samples have the model's own shape now.
        rest = {key: value for key, value in latent_image.items() if not key.startswith("downscale_ratio_")}
        latent = {**rest, "samples": out}
        return io.NodeOutput(latent, {**rest, "samples": to_intermediate(start)}, chosen.sigmas, report, ui=sent)


class StrengthSigmas(io.ComfyNode):
    """The sigmas of a strength, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeStrengthSigmas",
            display_name="Bespoke Strength Sigmas (img2img)",
            category="Bespoke/img2img",
            description=(
                "The noise levels of an image to image run for SamplerCustomAdvanced, by a strength with five named "
                "meanings, with a plot of the schedule and its start."
            ),
            search_aliases=[
                "img2img sigmas",
                "denoise scheduler",
                "BasicScheduler",
                "split sigmas denoise",
                "strength",
                "sigmas plot",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model whose noise levels are used: epsilon, v or flow."),
                scheduler_input(),
                steps_input(),
                strength_input(
                    "How much changes: 0 gives no sigmas, so the sampler returns the picture; 1 gives the whole "
                    "schedule."
                ),
                *contract_inputs(),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "The sampler you will use. For dpm_2, dpm_2_ancestral and uni_pc KSampler leaves out the last "
                        "sigma but one; this does the same."
                    ),
                ),
            ],
            has_intermediate_output=True,  # what the node sends is sent again where it is cached: see `sent_schedule`
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The noise levels from the start to 0; empty if nothing is to run."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many steps will run, from which noise level, and how much of the start is noise.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="The schedule with the part that runs, the start, and the noise's share there.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls, model, scheduler, steps, strength, contract=NOISE_LEVEL, exact_steps=False, sampler_name="euler"
    ) -> io.NodeOutput:
        request = Strength(strength, steps, contract, exact_steps)
        chosen = plan_for(model, request, scheduler, sampler_name)
        model_sampling = model.get_model_object("model_sampling")
        report = describe(chosen, model_sampling)
        sent = sent_schedule(chosen, model_sampling, request, scheduler, sampler_name)
        if chosen.run == 0:
            return io.NodeOutput(chosen.sigmas, report, draw(chosen, report, 0.0, 0.0), ui=sent)
        first = float(chosen.sigmas[0])
        share, timestep = noise_share(model_sampling, first), timestep_at(model_sampling, first)
        return io.NodeOutput(chosen.sigmas, report, draw(chosen, report, share, timestep), ui=sent)
