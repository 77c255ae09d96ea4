"""A training computes with what other nodes have put on the wire as sampling does, or refuses it by name.

The oracle is ComfyUI's own sampling: one call of its guider at CFG 1 for each picture, with the same noised latent,
noise level and prompt.
"""

import contextlib
import functools
import inspect
import operator
import re

import comfy.ldm.modules.attention
import comfy.patcher_extension
import comfy.samplers
import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import target_layers, training_conds
from bespoke.nodes.bridge.training_model.backward_check import check_gradients
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.bridge.wire.compatibility import (
    CALLBACKS,
    MODEL_OPTIONS,
    TRANSFORMER_OPTIONS,
    WRAPPERS,
    check_compatibility,
    compatibility_of,
)
from bespoke.nodes.bridge.wire.foreign_code import may_read_level
from bespoke.nodes.bridge.wire.table import CLIP, PATCHER, InTraining, Role
from bespoke.training.errors import InputError
from bespoke.training.objective import denoising_loss
from helpers import sprite_set
from random_lora import random_lora

TEXTS = ["a red circle", "a blue square on white", "green ring", "a yellow cross on black"]
TIMES = [0.1, 0.9, 0.9, 0.4]  # two samples of one level


# --- nodes and stand-ins of other packs' ------------------------------------------------------------------------------


class ImagePrompt:
    """What an IPAdapter puts on an attention: it adds keys and values in a range of noise levels, for positive prompts.

    As that pack's it reads the noise level of the first sample and divides the batch by `cond_or_uncond`.
    """

    def __init__(self, start, end):
        self.start, self.end = start, end

    def __call__(self, q, k, v, extra_options):
        sigma = extra_options["sigmas"].detach().cpu()[0].item()
        chunks = extra_options["cond_or_uncond"]
        out = comfy.ldm.modules.attention.attention_pytorch(q, k, v, extra_options["n_heads"])
        if self.end <= sigma <= self.start:
            assert q.shape[0] % len(chunks) == 0
            out = out + 50 * q.mean() * torch.tensor([[0, 1][chunk == 0] for chunk in chunks]).sum()
        return out


def with_image_prompt(model):
    made = model.clone()
    for block in [("input", 1), ("input", 2), ("middle", 0)]:
        made.set_model_attn2_replace(ImagePrompt(2.0, 0.0), *block)
    return made


def with_scale(model):
    """A wrapper of the model's function that scales the prediction by the noise level of the first sample."""
    made = model.clone()

    def scale(apply_model, args):
        factor = 1 + 0.1 * args["timestep"][0].item()
        return apply_model(args["input"], args["timestep"], **args["c"]) * factor

    made.set_model_unet_function_wrapper(scale)
    return made


def with_model_wrapper(model):
    """A wrapper of the diffusion model that reads where in the sampling it is, by `sample_sigmas`."""
    made = model.clone()

    def wrapper(executor, *args, **kwargs):
        options = args[-1] if isinstance(args[-1], dict) else kwargs["transformer_options"]
        assert options["sample_sigmas"].shape[0] > 1
        assert len(options["uuids"]) == len(options["cond_or_uncond"])
        return executor(*args, **kwargs) * (1 + options["sigmas"][0] / 100)

    made.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    return made


def with_attention(model, attention):
    made = model.clone()
    made.model_options["transformer_options"]["optimized_attention_override"] = attention
    return made


def softer_attention(default, q, k, v, *args, **kwargs):
    """An attention that has a backward pass and another result than ComfyUI's own."""
    return default(q * 0.5, k, v, *args, **kwargs)


def fast_attention(default, q, k, v, *args, **kwargs):
    """A stand-in for an attention kernel without a backward pass."""
    with torch.no_grad():
        return default(q, k, v, *args, **kwargs)


def node(name, **values):
    def make(run_node, model):
        return run_node(name, model=model, **values)[0]

    return make


def downscale(run_node, model):
    return run_node(
        "PatchModelAddDownscale",
        model=model,
        block_number=3,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.35,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    )[0]


APPLIED = {
    "nothing": lambda run_node, model: model,
    "DeepShrink": downscale,
    "SAG": node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "RescaleCFG": node("RescaleCFG", multiplier=0.7),
    "FreeU": node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "image prompt": lambda run_node, model: with_image_prompt(model),
    "model function": lambda run_node, model: with_scale(model),
    "model wrapper": lambda run_node, model: with_model_wrapper(model),
    "other attention": lambda run_node, model: with_attention(model, softer_attention),
}
BY_SAMPLE = {"DeepShrink", "image prompt", "model function", "model wrapper"}
REFUSED = {
    "EasyCache": (node("EasyCache", reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False), "EasyC"),
    "LazyCache": (node("LazyCache", reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False), "LazyC"),
    "attention": (lambda run_node, model: with_attention(model, fast_attention), "fast_attention"),
}


# --- the oracle -------------------------------------------------------------------------------------------------------


class OneCall(comfy.samplers.Sampler):
    """Asks ComfyUI's guider once, as its samplers do, and keeps the conditional prediction, before CFG functions."""

    def __init__(self, x, sigma):
        self.x, self.sigma = x, sigma

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *_):
        def keep(args):
            self.prediction = args["cond_denoised"].clone()
            return args["denoised"]

        options = extra_args["model_options"]
        options["sampler_post_cfg_function"] = [keep, *options.get("sampler_post_cfg_function", [])]
        inner = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        return inner(self.x, self.sigma, denoise_mask=None, model_options=options, seed=extra_args["seed"])


def sampled(model, prompts, noisy, sigma):
    """[B, C, H, W]: the conditional prediction of ComfyUI's sampling at CFG 1 for each picture by itself."""
    out = []
    for i, (cond, extra) in enumerate(prompts):
        guider = comfy.samplers.CFGGuider(model)
        fields = {**training_conds(model.model), **extra}  # Flux's guidance, which is a setting of the prompt
        guider.set_conds([[cond, dict(fields)]], [[cond, dict(fields)]])
        call = OneCall(noisy[i : i + 1], sigma[i : i + 1])
        table = model.get_model_object("model_sampling").sigmas
        levels = torch.cat([table.flip(0), torch.zeros(1)])
        with torch.no_grad():
            guider.sample(noisy[i : i + 1], torch.zeros_like(noisy[i : i + 1]), call, levels, disable_pbar=True, seed=0)
        out.append(call.prediction)
    return torch.cat(out)


class Case:
    """A prepared model and a batch of four pictures."""

    def __init__(self, denoiser, prompts, channels):
        torch.manual_seed(3)
        self.denoiser = denoiser
        self.latent, self.noise = torch.randn(4, channels, 16, 16), torch.randn(4, channels, 16, 16)
        self.sigma = denoiser.sigma(torch.tensor(TIMES))
        self.singles = [
            conditioning.model_conds(denoiser.base, cond, extra, self.latent[:1], denoiser.device)
            for cond, extra in prompts
        ]

    def predict(self, rows=(0, 1, 2, 3)):
        rows = list(rows)
        noisy = self.denoiser.add_noise(self.sigma[rows], self.noise[rows], self.latent[rows])
        conds = conditioning.join_conds([self.singles[i] for i in rows])
        return noisy, self.denoiser.denoise(noisy, self.sigma[rows], conds)

    def loss(self, rows=(0, 1, 2, 3)):
        rows = list(rows)
        conds = conditioning.join_conds([self.singles[i] for i in rows])
        return denoising_loss(self.denoiser, self.latent[rows], self.noise[rows], self.sigma[rows], conds).mean()


def prompts_of(clip):
    return [conditioning.encode_prompt(clip, text) for text in TEXTS]


@pytest.mark.parametrize("name", APPLIED)
def test_training_predicts_what_sampling_predicts(name, sd15, run_node):
    """The oracle is ComfyUI's guider, see above. Float32 sums in another order: 1e-4 of the largest value."""
    model, clip, _ = sd15
    made = APPLIED[name](run_node, model)
    prompts = prompts_of(clip)
    with prepare_for_training(made, "fp32") as denoiser:
        case = Case(denoiser, prompts, 4)
        calls = []
        hook = denoiser.base.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        with torch.no_grad():
            noisy, trained = case.predict()
        hook.remove()
    expected = sampled(made, prompts, noisy, case.sigma)
    assert (trained - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert sorted(calls) == ([1, 1, 2] if name in BY_SAMPLE else [4])
    if name not in ("nothing", "SAG", "RescaleCFG"):
        plain = sampled(model, prompts, noisy, case.sigma)
        assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()  # so the oracle tells them apart


@pytest.mark.parametrize("name", ["DeepShrink", "image prompt", "model function", "FreeU"])
def test_the_gradient_of_a_batch_is_the_mean_of_its_pictures(name, sd15, run_node):
    """The oracle is one picture at a time, and finite differences along the gradient.

    FreeU's patch overwrites its arguments and what its own product saves: "modified by an inplace operation".
    """
    model, clip, _ = sd15
    made = APPLIED[name](run_node, model)
    with prepare_for_training(made, "fp32") as denoiser:
        case = Case(denoiser, prompts_of(clip), 4)
        adapters = random_lora(target_layers(denoiser.base.diffusion_model, "cross-attention"), 4, denoiser.device)
        parameters = list(adapters.parameters())

        def gradient(rows):
            grads = torch.autograd.grad(case.loss(rows), parameters, allow_unused=True)
            return torch.cat(
                [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(grads, parameters, strict=True)]
            )

        with adapters.attached():
            batch, mean = gradient([0, 1, 2, 3]), sum(gradient([i]) for i in range(4)) / 4
            assert (batch - mean).norm() <= 1e-5 * mean.norm()
            step = 1e-2 / batch.norm()
            losses = []
            for sign in (1, -1):
                shifted = torch.nn.utils.parameters_to_vector(parameters).detach() + sign * step * batch
                before = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
                with torch.no_grad():
                    torch.nn.utils.vector_to_parameters(shifted, parameters)
                    losses.append(case.loss().double())
                    torch.nn.utils.vector_to_parameters(before, parameters)
        slope = (losses[0] - losses[1]) / (2 * step * batch.norm())
        assert slope == pytest.approx(float(batch.norm()), rel=0.02)


# --- both trainers ----------------------------------------------------------------------------------------------------

SHORT = dict(steps=2, batch_size=2, learning_rate=1e-3, seed=5, precision="fp32", resume=False)


def train_lora(run_node, models, **more):
    """The report of two steps of a LoRA."""
    model, clip, vae = models
    images = sprite_set(2, 4, side=64, colour="teal")
    settings = SHORT | dict(rank=2, alpha=2.0, images=images) | more
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, **settings)[4]


def train_word(run_node, models, **more):
    """The report of two steps of a textual inversion."""
    model, clip, vae = models
    images = sprite_set(3, 4, side=64, colour="pink", word="{word}")
    own = dict(name="my-pink", init_text="red", vectors=1, template="captions", images=images)
    return run_node("BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, **SHORT | own | more)[5]


TRAINERS = [train_lora, train_word]


@pytest.mark.parametrize("train", TRAINERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_train_wrong_is_refused_by_name(name, train, sd15, run_node, runs):
    """EasyCache and LazyCache hand on an earlier step's result; the attention has no backward pass. By definition."""
    model, clip, vae = sd15
    make, words = REFUSED[name]
    with pytest.raises(InputError, match=rf"the MODEL carries .*{words}.*wire the MODEL from before that node"):
        train(run_node, (make(run_node, model), clip, vae))


@pytest.mark.parametrize("train", TRAINERS)
@pytest.mark.parametrize("name", [name for name in APPLIED if name not in ("nothing", "FreeU")])
def test_what_trains_as_sampled_trains_and_says_what_it_costs(name, train, sd15, run_node, runs):
    """Without FreeU: pictures of 64 px have one cell in the lowest block, where it divides 0 by 0, in sampling too."""
    model, clip, vae = sd15
    report = train(run_node, (APPLIED[name](run_node, model), clip, vae))
    assert ("may read the noise level" in report) == (name in BY_SAMPLE)
    assert ("is in the samples and not in the training" in report) == (name in ("SAG", "RescaleCFG"))
    if name in ("DeepShrink", "SAG", "RescaleCFG"):
        kind = {"DeepShrink": "PatchModelAddDownscale", "SAG": "SelfAttentionGuidance"}.get(name, name)
        assert kind in report


class KeepsLast:
    """A wrapper of the model's function that mixes in its result of the call before, with the graph of that call."""

    def __init__(self):
        self.last = None

    def __call__(self, apply_model, args):
        out = apply_model(args["input"], args["timestep"], **args["c"])
        mixed = out if self.last is None or self.last.shape != out.shape else (out + self.last) / 2
        self.last = mixed
        return mixed


def test_code_that_keeps_a_graph_between_steps_is_refused_in_words(sd15, run_node, runs):
    """PyTorch frees a step's graph with its backward pass, and raises a RuntimeError where a later step uses it."""
    model, clip, vae = sd15
    made = model.clone()
    made.set_model_unet_function_wrapper(KeepsLast())
    with pytest.raises(InputError, match="keeps what it computed at one step .*wire the MODEL from before that node"):
        train_lora(run_node, (made, clip, vae), batch_size=1)


# --- the tables -------------------------------------------------------------------------------------------------------


def test_every_row_says_what_a_training_does_with_it():
    """Each change of a wire has a verdict, and what is refused or said has words for it."""
    for table in (PATCHER, CLIP):
        assert not [name for name, row in table.items() if row.role is Role.CHANGE and not row.words]
        assert not [
            name for name, row in table.items() if row.role is Role.CHANGE and row.in_training is InTraining.NO_EFFECT
        ]
    said = {InTraining.REFUSED, InTraining.SAMPLING_ONLY}
    for table in (MODEL_OPTIONS, TRANSFORMER_OPTIONS, WRAPPERS, CALLBACKS):
        assert not [key for key, rule in table.items() if rule.in_training in said and not rule.words]


def kinds_of(enumeration):
    return {value for name, value in vars(enumeration).items() if name.isupper()}


def test_every_kind_of_wrapper_and_callback_of_the_host_has_a_row():
    extension = comfy.patcher_extension
    assert kinds_of(extension.WrappersMP) <= set(WRAPPERS)
    assert kinds_of(extension.CallbacksMP) <= set(CALLBACKS)


def test_every_option_that_the_host_reads_has_a_row():
    """The keys of `model_options` in ComfyUI's sampling and patchers, found in their source."""
    import comfy.model_patcher
    import comfy.sampler_helpers

    modules = (comfy.samplers, comfy.model_patcher, comfy.sampler_helpers)
    source = "".join(inspect.getsource(module) for module in modules)
    pattern = r"model_options(?:\.get\(|\.pop\(|\.setdefault\(|\[)[\"'](\w+)[\"']|[\"'](\w+)[\"'] in model_options"
    found = {name for pair in re.findall(pattern, source) for name in pair if name}
    assert len(found) > 8
    assert found <= set(MODEL_OPTIONS)


def own_wrapper(executor, *args, **kwargs):
    return executor(*args, **kwargs)


def own_callback(*_args):
    pass


@pytest.mark.parametrize("kind", [*WRAPPERS, "of_a_later_version"])
def test_a_wrapper_of_each_kind_is_applied_or_refused_by_name(kind, sd15):
    made = sd15[0].clone()
    made.add_wrapper(kind, own_wrapper)
    if kind in ("apply_model", "diffusion_model"):
        assert compatibility_of(made).code == (f"the function own_wrapper of {__name__}",)
        assert compatibility_of(made).by_sample == compatibility_of(made).code  # it gets the noise level by position
        return
    with pytest.raises(InputError, match="own_wrapper"):
        check_compatibility(made)


@pytest.mark.parametrize("kind", [*CALLBACKS, "of_a_later_version"])
def test_a_callback_of_each_kind_is_called_or_refused(kind, sd15):
    made = sd15[0].clone()
    made.add_callback(kind, own_callback)
    if kind == "of_a_later_version":
        with pytest.raises(InputError, match="own_callback"):
            check_compatibility(made)
    else:
        check_compatibility(made)


def test_core_code_that_leaves_a_prediction_is_said_and_not_refused(sd15, run_node):
    """Under keys whose code is refused otherwise: layers skipped for the negative prompt, a CFG by noise level."""
    from nodes import NODE_CLASS_MAPPINGS

    cases = {
        "SkipLayerGuidanceDiTSimple": dict(double_layers="1", single_layers="", start_percent=0.0, end_percent=1.0),
        "CFGOverride": dict(cfg=2.0, start_percent=0.0, end_percent=0.5),
    }
    there = [name for name in cases if name in NODE_CLASS_MAPPINGS]
    assert "SkipLayerGuidanceDiTSimple" in there  # ComfyUI 0.24.1 has no CFGOverride
    for name in there:
        made = run_node(name, model=sd15[0], **cases[name])[0]
        check_compatibility(made)
        assert name in " ".join(compatibility_of(made).notes())


def test_an_option_without_a_row_is_said(sd15):
    made = sd15[0].clone()
    made.model_options["another_packs_option"] = 3
    assert "another_packs_option" in " ".join(compatibility_of(made).notes())


def test_what_a_clip_carries_is_refused_by_its_name(sd15):
    import comfy.hooks

    clip = sd15[1].clone()
    clip.apply_hooks_to_conds = comfy.hooks.HookGroup()
    clip.apply_hooks_to_conds.add(comfy.hooks.WeightHook())
    with pytest.raises(InputError, match="the CLIP carries hooks of another node"):
        check_compatibility(sd15[0], clip)
    clip.apply_hooks_to_conds = None
    check_compatibility(sd15[0], clip)


def cached_forward(apply_model, args):
    """A stand-in for a step cache of another pack, which is known by its name (`TeaCache`, `first_block_cache`)."""
    return apply_model(args["input"], args["timestep"], **args["c"])


cached_forward.__qualname__ = "TeaCache.apply_teacache.<locals>.unet_wrapper_function"


def test_step_caches_of_other_packs_are_refused(sd15):
    made = sd15[0].clone()
    made.set_model_unet_function_wrapper(cached_forward)
    with pytest.raises(InputError, match="a step cache .*TeaCache.apply_teacache"):
        check_compatibility(made)
    made = sd15[0].clone()
    made.model_options["transformer_options"]["magcache_ratios"] = [1.0]
    with pytest.raises(InputError, match=r"a step cache \(magcache_ratios\)"):
        check_compatibility(made)


def test_a_patch_without_a_backward_pass_is_refused(sd15):
    """One attention of sixteen: the other layers' gradients go on, so only the patch itself shows it."""
    model, clip, _ = sd15
    made = model.clone()

    def kernel(q, k, v, extra_options):
        with torch.no_grad():
            return comfy.ldm.modules.attention.attention_pytorch(q, k, v, extra_options["n_heads"])

    made.set_model_attn2_replace(kernel, "input", 2)
    with prepare_for_training(made, "fp32") as denoiser:
        case = Case(denoiser, prompts_of(clip), 4)
        adapters = random_lora(target_layers(denoiser.base.diffusion_model, "cross-attention"), 4, denoiser.device)
        with adapters.attached(), pytest.raises(InputError, match="kernel of .*has no backward pass"):
            case.loss()


@pytest.mark.parametrize("train", TRAINERS)
def test_a_function_without_a_gradient_is_refused(train, sd15, run_node, runs):
    """A wrapper of the model's function that drops the graph: nothing would be learned."""
    model, clip, vae = sd15
    made = model.clone()

    def detached(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"]).detach()

    made.set_model_unet_function_wrapper(detached)
    with pytest.raises(InputError, match="detached of .*no gradient comes to .* of "):
        train(run_node, (made, clip, vae))


def test_the_search_for_lost_gradients_takes_two_passes():
    """With the code and without it, whatever the number of layers that get no gradient; counted."""
    layers = {name: [torch.nn.Parameter(torch.ones(1))] for name in ("a", "b", "c")}
    has_code, passes = [True], []

    def loss():
        passes.append(has_code[0])
        used = ["a"] if has_code[0] else ["a", "b"]  # c gets none in either case: that is not the code's fault
        return torch.stack([layers[name][0] for name in used]).sum()

    @contextlib.contextmanager
    def without_code():
        has_code[0] = False
        yield

    with pytest.raises(InputError, match=r"no gradient comes to b \(1 of 3\)"):
        check_gradients(loss, layers.items(), without_code, ["some code"])
    assert passes == [True, False]


def test_samples_of_a_training_are_drawn_with_all_that_the_wire_carries(sd15, run_node, runs):
    """CFG functions are called while samples are drawn, and in no step: by counting the calls."""
    model, clip, vae = sd15
    made, calls = model.clone(), []

    def counted(args):
        calls.append(1)
        return args["denoised"]

    made.set_model_sampler_post_cfg_function(counted)
    train_lora(run_node, (made, clip, vae), steps=2)
    assert not calls
    train_lora(run_node, (made, clip, vae), steps=2, sample_every=2)
    assert len(calls) == 2 * 20  # two samples of KSampler's 20 steps


class KeptControl(torch.nn.Module):
    """What core's Uni3C and others do: a network of the patch's own, whose result is kept for later steps."""

    def __init__(self):
        super().__init__()
        self.net, self.kept = torch.nn.Linear(1, 1), None

    def __call__(self, h, hsp, transformer_options):
        if self.kept is None:
            self.kept = self.net(torch.ones(1, 1))
        return h * (1 + 0.1 * self.net(self.kept).tanh()), hsp


@pytest.mark.parametrize("inference", [False, True])
def test_a_network_of_a_patch_gets_no_gradient_and_may_keep_what_it_computed(inference, sd15, run_node, runs):
    """Two steps with one kept result: with a graph in it the second raises "backward a second time"."""
    model, clip, vae = sd15
    with torch.inference_mode(inference):
        patch = KeptControl()
    made = model.clone()
    made.set_model_output_block_patch(patch)
    train_lora(run_node, (made, clip, vae), steps=2)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in patch.parameters())


def test_a_patch_with_one_row_is_called_for_each_picture(flux):
    """Core's style projector gives one row whatever the batch; sampling four pictures at once fails alike."""
    from comfy.model_patcher import ModelPatcher
    from comfy_extras.nodes_model_patch import UsoStyleProjectorPatch

    model, clip, _ = flux
    made = model.clone()
    width = model.model.diffusion_model.hidden_size

    class Projector(torch.nn.Module):
        def forward(self, image):
            return image[0].repeat(1, 1, width)

    projector = ModelPatcher(Projector(), model.load_device, model.offload_device)
    made.set_model_post_input_patch(UsoStyleProjectorPatch(projector, torch.ones(3, 1, 2, 1)))
    prompts = prompts_of(clip)
    with prepare_for_training(made, "fp32") as denoiser, torch.no_grad():
        case = Case(denoiser, prompts, model.model.latent_format.latent_channels)
        noisy, trained = case.predict()
    assert "takes one picture at a time" in " ".join(compatibility_of(made).notes())
    expected = sampled(made, prompts, noisy, case.sigma)
    assert (trained - expected).abs().max() <= 1e-4 * expected.abs().max()


# --- LoRAs beside the weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", TRAINERS)
def test_cores_bypass_lora_of_float32_trains(train, sd15, run_node, runs):
    """Its factors are inference tensors, which autograd refuses to save: "Inference tensors cannot be saved"."""
    model, clip, vae = sd15
    with torch.inference_mode():
        lora = {key: value.float().clone() for key, value in tiny.random_lora(tiny.linear_layers(model), 4).items()}
        made = run_node("LoraModelLoader", model=model, lora=lora, strength_model=1.0, bypass=True)[0]
    assert made.injections
    assert "may read the noise level" not in train(run_node, (made, clip, vae))


@pytest.mark.slow
def test_a_merge_loses_a_bypass_lora_of_its_second_model_and_shows_nothing_of_it(sd15, run_node):
    """What the help of Inject LoRA says, by what core's merge takes: of each weight itself and its patches."""
    model = sd15[0]
    lora = tiny.random_lora(tiny.linear_layers(model), 4)
    beside, within = (
        run_node("LoraModelLoader", model=model, lora=lora, strength_model=1.0, bypass=bypass)[0]
        for bypass in (True, False)
    )
    taken = {}
    for name, second in {"beside": beside, "within": within, "plain": model}.items():
        merged = run_node("ModelMergeSimple", model1=model, model2=second, ratio=0.5)[0]
        assert not merged.injections
        taken[name] = [len(patches[0][1]) for patches in merged.patches.values()]
    assert beside.injections
    assert taken["beside"] == taken["plain"]  # the weight alone, of each
    assert sum(taken["within"]) == sum(taken["plain"]) + len(within.patches)


# --- reading code -----------------------------------------------------------------------------------------------------


def helper_that_reads(options):
    return options["sigmas"]


def calls_a_helper(h, hsp, options):
    return h * helper_that_reads(options)[0], hsp


LEVEL, LEVELS, COUNTED = "sigmas", ("sample_sigmas",), ("cond_or_uncond",)


def reads_by_a_constant(h, hsp, options):
    return h * options[LEVEL][0], hsp


def reads_by_one_of_some_constants(h, hsp, options):
    return h * options[LEVELS[0]][0], hsp


def reads_another_constant(h, hsp, options):
    return h * len(options[COUNTED[0]]), hsp


def reads_nothing(h, hsp, options):
    return h * len(options["cond_or_uncond"]), hsp


class ReadsInAList:
    """As IPAdapter's patch, which holds the functions that it calls in a list."""

    def __init__(self):
        self.callbacks = [functools.partial(calls_a_helper)]

    def __call__(self, *args):
        return self.callbacks[0](*args)


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        (calls_a_helper, True),
        (functools.partial(calls_a_helper), True),
        (functools.cache(calls_a_helper), True),
        (ReadsInAList(), True),
        (operator.itemgetter(0), True),  # it has no code to read
        (reads_by_a_constant, True),
        (reads_by_one_of_some_constants, True),
        (functools.partial(lambda h, hsp, options, key: (h * options[key][0], hsp), key=LEVEL), True),
        (reads_another_constant, False),
        (reads_nothing, False),
        (lambda *args: reads_nothing(*args), False),
    ],
    ids=[
        "a helper",
        "a partial",
        "a cached function",
        "an object",
        "no code",
        "a constant",
        "one of some constants",
        "a key that is given",
        "another constant",
        "nothing",
        "a function that calls nothing",
    ],
)
def test_whether_code_reads_the_noise_level_is_found_in_what_it_calls(code, reads):
    assert may_read_level(code) == reads


def test_code_that_gets_the_noise_level_by_position_counts_as_reading_it():
    assert may_read_level(reads_nothing, in_arguments=True)
    assert may_read_level(ReadsInAList().__call__, in_arguments=True)


def test_a_blended_model_is_trained_as_the_model_before_it(comfyui, run_node):
    """The blend changes a sampler's states, and no prediction: a training says that it is in the samples alone."""
    model = tiny.patcher()
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    blended = run_node("BespokeLatentMaskBlend", model=model, latent=latent, mask=mask)[0]
    compatibility = compatibility_of(blended)
    assert not compatibility.refused
    assert not compatibility.code
    assert all("inpaint" in each for each in compatibility.sampling_only)
    assert len(compatibility.sampling_only) == 2
