"""A LoRA over a part of the picture: each layer's path times the mask, bit for bit the base's where the mask is 0."""

from __future__ import annotations

import math

import families
import pytest
import tiny
import torch
from bespoke.nodes.lora.injection.layout import Site, layout_of
from bespoke.nodes.lora.injection.region import Region
from bespoke.training.layer_names.spelling import COMFY_PREFIX
from family_checks import predict
from family_loras import lora_of
from helpers import max_difference, weights_hash

pytestmark = pytest.mark.usefixtures("comfyui")
ONE = {"lora_name": "none", "strength_model": 1.0, "mode": "bypass"}


SIDE = 48  # of the mask


def left_part(share=0.5):
    mask = torch.zeros(1, SIDE, SIDE)
    mask[..., : round(SIDE * share)] = 1.0
    return mask


def left_half():
    return left_part()


def masked(run_node, model, lora, mask, **inputs):
    return run_node("BespokeInjectLora", model=model, lora=lora, mask=mask, **ONE | inputs)[0]


def without_text(models, lora):
    """The LoRA without the layers that have no place in the picture, and those whose tokens are text in part."""
    layout = layout_of(models[0].model.diffusion_model)
    return {
        key: tensor
        for key, tensor in lora.items()
        if key.startswith(COMFY_PREFIX)
        and layout.site(key.removeprefix(COMFY_PREFIX).rsplit(".lora_", 1)[0].removesuffix(".alpha"))
        not in (Site.ELSEWHERE, Site.JOINT)
    }


def recorded(run_node, models, lora, mask):
    """[(layer, its input, its output)] of the layers of a LoRA in one call of the masked model, the keys' left out."""
    import comfy.model_management

    patched = masked(run_node, models[0], lora, mask)
    _, (x, sigma, conds) = predict(models, patched)  # loads it: the hooks below come after its own
    layout, seen, handles = layout_of(models[0].model.diffusion_model), [], []
    names = {key.removeprefix(COMFY_PREFIX).rsplit(".lora_", 1)[0] for key in lora if ".lora_up" in key}
    for name, module in patched.model.diffusion_model.named_modules():
        if name in names and layout.site(name) in (Site.PICTURE, Site.JOINT):

            def keep(module, args, out, name=name):
                seen.append((name, module, args[0].clone(), out.clone()))

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.inference_mode():
            patched.model.apply_model(x, sigma, **conds.tensors())
    finally:
        for handle in handles:
            handle.remove()
    comfy.model_management.load_models_gpu([models[0]])
    return seen


THIRD = 1 / 3


def covered(models, name, out, text):
    """How much of each position of a layer's output the left third covers: by hand, from the order of tokens in the
    class's code.

    out: [B, tokens, width] or [B, channels, (frames,) rows, columns]. text: how many tokens the prompt has. Returns it
    in a shape that multiplies `out`.
    """
    model = models[0].model.diffusion_model
    frames, rows, columns = (1, *families.latent_shape(models[0].model, 2)[1:])[-3:]
    layout = layout_of(model)

    def of_columns(count):
        return (THIRD * count - torch.arange(count)).clamp(0, 1)

    if out.ndim > 3:
        return of_columns(out.shape[-1]).expand(*out.shape[2:])
    if layout.feature_maps:  # each level halves the latent, rounded up
        size = next(2**n for n in range(5) if -(-rows // 2**n) * -(-columns // 2**n) == out.shape[1])
    else:
        size = model.patch_size[-1] if isinstance(model.patch_size, tuple | list) else model.patch_size
    rows, columns = -(-rows // size), -(-columns // size)
    cells = of_columns(columns).repeat(frames * rows)
    found = torch.zeros(out.shape[1])
    first = 0
    if layout.site(name) is Site.JOINT:
        first = text  # Flux, Chroma: torch.cat((txt, img)); Z-Image and Lumina: the caption, padded, then the picture
        if layout.from_end:
            multiple = model.pad_tokens_multiple or 1
            first = out.shape[1] - -(-len(cells) // multiple) * multiple
    found[first : first + len(cells)] = cells
    return found[:, None]


FAST = ("sd15", "flux", "z_image", "wan")
NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in ("sd15", "sdxl", "sd3", "flux", "flux2", "chroma", "qwen_image", "z_image", "lumina2", "wan")
]


@pytest.mark.parametrize("name", NAMES)
def test_each_layer_is_the_bases_outside_of_the_mask(run_node, name):
    """Outside, the layer's own forward pass on the same input, bit for bit; elsewhere, plus the LoRA's path by hand,
    times how much of the cell the mask covers."""
    models = families.made(name)
    lora = lora_of(models, text=False)
    from bespoke.nodes.bridge.dataset import conditioning

    context = conditioning.encode_prompt(models[1], "a red circle")[0]
    seen = recorded(run_node, models, lora, left_part(THIRD))
    assert len({layer for layer, *_ in seen}) > 5
    for layer, module, x, out in seen:
        with torch.inference_mode():
            base = module.forward(x)
            at = f"{COMFY_PREFIX}{layer}"
            up, down = lora[f"{at}.lora_up.weight"], lora[f"{at}.lora_down.weight"]
            scale = float(lora[f"{at}.alpha"]) / down.shape[0]
            if out.ndim == 3:
                path = scale * (x @ down.flatten(1).t()) @ up.flatten(1).t()
            else:
                path = scale * torch.einsum("or,br...->bo...", up.flatten(1), module._conv_forward(x, down, None))
        share = covered(models, layer, out, context.shape[1]).expand_as(out)
        outside = share == 0
        assert outside.any()
        assert not outside.all()
        assert torch.equal(out[outside], base[outside]), layer
        wanted = base + share * path
        assert max_difference(out, wanted) < 1e-4 * float(path.abs().max()), layer


@pytest.mark.parametrize("name", [name for name in NAMES if name != "z_image"])  # its padding is no part of the picture
def test_a_mask_of_ones_is_the_lora_and_of_zeros_the_base(run_node, name):
    """The LoRA of layers that work on the picture alone, in bypass without a mask, is the oracle."""
    models = families.made(name)
    lora = without_text(models, lora_of(models, text=False))
    base = predict(models, models[0])[0]
    whole = predict(models, run_node("BespokeInjectLora", model=models[0], lora=lora, **ONE)[0])[0]
    movement = max_difference(whole, base)
    assert movement > 1e-3 * base.abs().max()
    found = predict(models, masked(run_node, models[0], lora, torch.ones(1, 8, 8)))[0]
    assert max_difference(found, whole) < 1e-3 * movement
    assert torch.equal(predict(models, masked(run_node, models[0], lora, torch.zeros(1, 8, 8)))[0], base)
    half = predict(models, masked(run_node, models[0], lora, left_half()))[0]
    assert max_difference(half, base) > 0
    assert max_difference(half, whole) > 1e-2 * movement


# --- the U-Net's cross-attention -------------------------------------------------------------------------------------

ATTENTION = "middle_block.1.transformer_blocks.0.attn2"


def keys_and_values(model, seed):
    layers = {f"{ATTENTION}.{part}": tiny.linear_layers(model)[f"{ATTENTION}.{part}"] for part in ("to_k", "to_v")}
    return tiny.random_lora(layers, 4, seed=seed, size=1.0)


def attention_in(model):
    """(input, context, output) of the cross-attention in one call of the model."""
    seen = []
    module = model.model.diffusion_model.get_submodule(ATTENTION)
    tiny.predict(model)  # loads it: the hook below comes after its own
    handle = module.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args[0].clone(), kwargs["context"].clone(), out.clone())),
        with_kwargs=True,
    )
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 7, tiny.CONTEXT)))
    try:
        with torch.inference_mode():
            model.model.apply_model(x, torch.tensor([2.0]), c_crossattn=text)
    finally:
        handle.remove()
    return seen[0]


def test_two_loras_left_and_right_each_read_the_prompt_by_themselves(run_node):
    """Merged into the weights, each LoRA alone gives the attention's output on the same input: the left tokens are the
    first's, the right ones the second's."""
    model = tiny.patcher()
    loras = [keys_and_values(model, seed) for seed in (1, 2)]
    left = left_half()
    both = masked(run_node, masked(run_node, model, loras[0], left), loras[1], 1 - left)
    x, context, out = attention_in(both)
    module = model.model.diffusion_model.get_submodule(ATTENTION)
    import comfy.model_management

    alone = []
    for lora in loras:
        merged = run_node("BespokeInjectLora", model=model, lora=lora, **ONE | {"mode": "merge"})[0]
        comfy.model_management.load_models_gpu([merged])
        with torch.inference_mode():
            alone.append(module(x, context=context))
    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        base = module(x, context=context)
    side = math.isqrt(x.shape[1])
    is_left = (torch.arange(side) < side // 2).repeat(side)
    assert max_difference(alone[0], alone[1]) > 0.1 * base.abs().max()
    for one, where in zip(alone, (is_left, ~is_left), strict=True):
        assert max_difference(out[:, where], one[:, where]) < 1e-4 * max_difference(one, base)
    # A single one leaves the other side as it is, bit for bit.
    x, context, out = attention_in(masked(run_node, model, loras[0], left))
    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        assert torch.equal(out[:, ~is_left], module(x, context=context)[:, ~is_left])


def test_a_feathered_mask_acts_in_part(run_node):
    """By hand: a quarter of the mask is a quarter of the attention's change."""
    model = tiny.patcher()
    lora = keys_and_values(model, 1)
    base = attention_in(model)[2]
    whole = attention_in(masked(run_node, model, lora, torch.ones(1, 8, 8)))[2]
    part = attention_in(masked(run_node, model, lora, torch.full((1, 8, 8), 0.25)))[2]
    assert max_difference(part, base + 0.25 * (whole - base)) < 1e-5 * max_difference(whole, base)


def test_weights_that_are_not_loaded_change_nothing(run_node):
    """ComfyUI's low-VRAM mode leaves weights where they are and casts them at each call. The oracle is the model that
    is loaded whole; a merged LoRA is on the wire too, as a patch that this mode computes at each call."""
    import comfy.model_management

    model = tiny.patcher()
    merged = run_node("BespokeInjectLora", model=model, lora=keys_and_values(model, 2), lora_name="none")[0]
    patched = masked(run_node, merged, keys_and_values(model, 1), left_half())
    whole = tiny.predict(patched)
    assert max_difference(whole, tiny.predict(merged)) > 0
    comfy.model_management.unload_all_models()
    patched.patch_model(patched.load_device, lowvram_model_memory=1)
    try:
        assert patched.model.model_lowvram
        layer = patched.model.diffusion_model.get_submodule(f"{ATTENTION}.to_k")
        assert layer.comfy_cast_weights
        assert patched.model.model_loaded_weight_memory == 0
        loaded = tiny.predict_loaded(patched)
        assert max_difference(loaded, whole) < 1e-5 * float(whole.abs().max())
    finally:
        patched.unpatch_model(patched.offload_device)


def test_replaced_attention_is_refused(run_node):
    """IP-Adapter and others replace the attention to the prompt: the key's and value's part would be lost there."""
    import comfy.model_management

    model = tiny.patcher()
    patched = masked(run_node, model, keys_and_values(model, 1), left_half())
    patched.set_model_attn2_replace(lambda q, k, v, _: q, "middle", 0)
    comfy.model_management.load_models_gpu([patched])
    with pytest.raises(ValueError, match="another node .such as IP-Adapter. replaces the attention to the prompt"):
        patched.model.apply_model(
            torch.zeros(1, 4, 16, 16),
            torch.tensor([2.0]),
            c_crossattn=torch.zeros(1, 7, tiny.CONTEXT),
            transformer_options=patched.model_options["transformer_options"],
        )


# --- batches, frames, ranges -----------------------------------------------------------------------------------------


def test_each_picture_of_a_batch_has_its_mask(run_node):
    """ComfyUI calls the model with the batch under each prompt: four latents for two pictures."""
    import comfy.model_management

    model = tiny.patcher()
    lora = tiny.random_lora(tiny.linear_layers(model), 4)
    masks = torch.cat([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, 16, 16, generator=generator)
    text = torch.randn(4, 7, tiny.CONTEXT, generator=generator)

    def out(at):
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([at])
            return at.model.apply_model(x, torch.full((4,), 2.0), c_crossattn=text).clone()

    base, found = out(model), out(masked(run_node, model, lora, masks))
    whole = out(masked(run_node, model, lora, torch.ones(1, 8, 8)))
    assert torch.equal(found[[1, 3]], base[[1, 3]])
    assert max_difference(found[[0, 2]], whole[[0, 2]]) < 1e-5 * max_difference(whole, base)
    assert max_difference(found[[0, 2]], base[[0, 2]]) > 1e-3
    with pytest.raises(ValueError, match="mask has 3 pictures, and the model is called with 4 latents"):
        out(masked(run_node, model, lora, torch.ones(3, 8, 8)))


def test_more_masks_than_pictures_are_refused_with_two_prompts_in_a_call():
    """ComfyUI's calls of two pictures: four latents where both prompts fit into memory, and two calls of two where not.
    By that, four masks for two pictures are refused in both, and two masks are each picture's own in both."""
    network = tiny.patcher(tiny.SMALLEST).model.diffusion_model
    x, text = torch.zeros(4, 4, 8, 8), torch.zeros(4, 7, tiny.CONTEXT)
    masks = torch.stack([torch.full((8, 8), value) for value in (0.1, 0.2, 0.3, 0.4)])
    region = Region(masks, layout_of(network), network)
    region.begin(x, text)  # four pictures with one prompt
    with pytest.raises(ValueError, match="mask has 4 pictures, and the model is called with 4 latents for 2 pictures"):
        region.begin(x, text, prompts=2)
    with pytest.raises(ValueError, match="mask has 4 pictures, and the model is called with 2 latents; give one"):
        region.begin(x[:2], text[:2])
    two = Region(masks[:2], layout_of(network), network)
    for batch, prompts in ((4, 2), (2, 1)):
        two.begin(x[:batch], text[:batch], prompts)
        found = two.where("out.2", Site.PICTURE, torch.zeros(batch, 3, 8, 8))[:, 0, 0, 0]
        assert found.tolist() == pytest.approx([0.1, 0.2] * prompts)


def test_the_sampler_refuses_more_masks_than_pictures(run_node):
    """With both prompts in one call, which has as many latents as there are masks here: core's own sampling."""

    model = tiny.patcher(tiny.SMALLEST)
    masks = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    patched = masked(run_node, model, tiny.random_lora(tiny.linear_layers(model), 2), masks)
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    cond = [[torch.zeros(1, 7, tiny.CONTEXT), {}]]
    with pytest.raises(ValueError, match="mask has 4 pictures, and the model is called with 4 latents for 2 pictures"):
        run_node(
            "KSampler", model=patched, seed=0, steps=1, cfg=2.0, sampler_name="euler", scheduler="normal",
            positive=cond, negative=cond, latent_image=latent, denoise=1.0,
        )  # fmt: skip


def test_a_reference_picture_before_the_videos_tokens():
    """By hand, from Wan's forward: `ref_conv` makes a token of each 2 x 2 of the reference's latents, and they are put
    before the video's; none of them is in the picture."""
    network = families.made("wan")[0].model.diffusion_model
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 1.0
    region = Region(mask, layout_of(network), network)
    region.begin(torch.zeros(1, 16, 2, 4, 4), None, reference=torch.zeros(1, 16, 4, 4))
    found = region.where("blocks.0.ffn.0", Site.PICTURE, torch.zeros(1, 4 + 2 * 4, 5))
    assert found[0, :, 0].tolist() == [0.0] * 4 + [1.0, 0.0] * 4
    region.begin(torch.zeros(1, 16, 2, 4, 4), None)  # the next call has none
    assert region.where("blocks.0.ffn.0", Site.PICTURE, torch.zeros(1, 8, 5))[0, :, 0].tolist() == [1.0, 0.0] * 4


def test_reference_pictures_before_the_pictures_tokens():
    """By hand, from Lumina's forward: the tokens of the references stand before the picture's, also in the layers that
    refine pictures alone, and each is padded to a multiple of 32 where the model has one."""
    network = families.made("z_image")[0].model.diffusion_model
    multiple = network.pad_tokens_multiple
    assert multiple
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 1.0
    region = Region(mask, layout_of(network), network)
    region.begin(torch.zeros(1, 16, 8, 8), torch.zeros(1, 5, 8))
    cells = 4 * 4
    wanted = [0.0] * multiple + [1.0, 1.0, 0.0, 0.0] * 4 + [0.0] * (multiple - cells)
    for name, site in (("noise_refiner.0.feed_forward.w1", Site.PICTURE), ("layers.0.feed_forward.w1", Site.JOINT)):
        assert region.where(name, site, torch.zeros(1, 2 * multiple, 3))[0, :, 0].tolist() == wanted
    plain = region.where("x_embedder", Site.PICTURE, torch.zeros(1, cells, 3))
    assert plain[0, :, 0].tolist() == [1.0, 1.0, 0.0, 0.0] * 4


@pytest.mark.parametrize("dials", [{"strength_model": 0.0}, {"blocks": "mid:0"}, {"blocks": "in.0"}])
def test_a_strength_of_0_under_a_mask_is_the_base(run_node, dials):
    """As without a mask: bit for bit the base, and the report says that nothing is left."""
    model = tiny.patcher(tiny.SMALLEST)
    lora = tiny.random_lora(tiny.linear_layers(model), 2)
    given = ONE | {"model": model, "lora": lora, "mask": left_half()} | dials
    patched, _, report, _, _ = run_node("BespokeInjectLora", **given)
    assert torch.equal(tiny.predict(patched), tiny.predict(model))
    assert "Nothing is applied: with these strengths and blocks nothing of the LoRA is left." in report


def test_frames_of_a_video():
    """By hand: Wan's first latent is the first frame, every further one four frames."""
    models = families.made("wan")
    network = models[0].model.diffusion_model
    masks = torch.zeros(9, 4, 4)  # three latents
    masks[0], masks[3], masks[5:] = 1.0, 1.0, 0.5
    region = Region(masks, layout_of(network), network)
    region.begin(torch.zeros(2, 16, 3, 4, 4), torch.zeros(2, 7, 32))
    hidden = torch.zeros(2, 3 * 2 * 2, 5)
    found = region.where("blocks.0.ffn.0", Site.PICTURE, hidden)
    assert found.shape == (2, 12, 1)
    assert found[0, :, 0].tolist() == [1.0] * 4 + [0.25] * 4 + [0.5] * 4
    one = Region(masks[:1], layout_of(network), network)
    one.begin(torch.zeros(2, 16, 3, 4, 4), None)
    assert one.where("blocks.0.ffn.0", Site.PICTURE, hidden).min() == 1.0
    wrong = Region(masks[:5], layout_of(network), network)
    wrong.begin(torch.zeros(2, 16, 3, 4, 4), None)
    with pytest.raises(ValueError, match="mask has 5 pictures, and the video has 3 latents; give 1, 3 or 9 masks"):
        wrong.where("blocks.0.ffn.0", Site.PICTURE, hidden)


def test_outside_of_the_range_nothing_acts(run_node):
    model = tiny.patcher()
    lora = tiny.random_lora(tiny.linear_layers(model), 4)
    ranged = masked(run_node, model, lora, left_half(), start_percent=0.5)
    early, late = (float(model.model.model_sampling.percent_to_sigma(percent)) for percent in (0.2, 0.8))
    assert torch.equal(tiny.predict(ranged, sigma=early), tiny.predict(model, sigma=early))
    assert max_difference(tiny.predict(ranged, sigma=late), tiny.predict(model, sigma=late)) > 1e-3


def test_nothing_stays_behind(run_node):
    import comfy.model_management

    model = tiny.patcher(seed=5)
    base, before = tiny.predict(model), weights_hash(model.model)
    patched = masked(run_node, model, tiny.random_lora(tiny.linear_layers(model), 4), left_half())
    assert max_difference(tiny.predict(patched), base) > 1e-3
    comfy.model_management.unload_all_models()
    assert weights_hash(model.model) == before
    assert torch.equal(tiny.predict(model), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


# --- kinds and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LoKr", "LoHa", "full"])
def test_other_kinds_without_the_base_work_too(run_node, kind):
    """The same kind in bypass without a mask is the oracle for a mask of ones."""
    model = tiny.patcher(tiny.SMALLEST)
    generator = torch.Generator().manual_seed(3)

    def noise(*shape):
        return 0.2 * torch.randn(*shape, generator=generator)

    lora = {}
    for name, (rows, columns) in tiny.linear_layers(model).items():
        at = f"{COMFY_PREFIX}{name}"
        lora |= {
            "LoKr": {f"{at}.lokr_w1": noise(4, 4), f"{at}.lokr_w2": noise(rows // 4, columns // 4)},
            "LoHa": {f"{at}.hada_w{n}_a": noise(rows, 2) for n in (1, 2)}
            | {f"{at}.hada_w{n}_b": noise(2, columns) for n in (1, 2)},
            "full": {f"{at}.diff": noise(rows, columns), f"{at}.diff_b": noise(rows)},
        }[kind]
    base = tiny.predict(model)
    whole = tiny.predict(run_node("BespokeInjectLora", model=model, lora=lora, **ONE)[0])
    found = tiny.predict(masked(run_node, model, lora, torch.ones(1, 8, 8)))
    assert max_difference(found, whole) < 1e-3 * max_difference(whole, base)
    assert torch.equal(tiny.predict(masked(run_node, model, lora, torch.zeros(1, 8, 8))), base)


def test_parts_of_a_fused_layer(run_node):
    """diffusers' to_k of Flux's fused layer: bypass without a mask is the oracle for ones."""
    models = families.made("flux")
    width = models[0].model.diffusion_model.hidden_size
    generator = torch.Generator().manual_seed(1)
    at = "transformer.transformer_blocks.0.attn.to_k"
    lora = {
        f"{at}.lora_B.weight": torch.randn(width, 2, generator=generator),
        f"{at}.lora_A.weight": torch.randn(2, width, generator=generator),
    }
    base = predict(models, models[0])[0]
    whole = predict(models, run_node("BespokeInjectLora", model=models[0], lora=lora, **ONE)[0])[0]
    found = predict(models, masked(run_node, models[0], lora, torch.ones(1, 8, 8)))[0]
    assert max_difference(found, whole) < 1e-3 * max_difference(whole, base)


def test_what_cannot_be_masked_is_said(run_node):
    models = families.made("sd15")
    lora = lora_of(models)
    given = dict(model=models[0], clip=models[1], lora=lora, mask=left_half(), **ONE)
    _, clip, report, _, scoped = run_node("BespokeInjectLora", **given)
    assert not clip.patcher.patches
    assert "The text encoder's part (6 layers) cannot be masked and is left out" in report
    assert "are keys and values of the prompt" in report
    assert "A file holds no mask" in report
    assert any(key.startswith("text_encoders") for key in scoped)
    with pytest.raises(ValueError, match="^Bespoke Inject LoRA: mask is wired and mode is merge.*set mode to bypass"):
        run_node("BespokeInjectLora", **given | {"mode": "merge"})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"dora_scale": (1, 32)}, "is DoRA, which depends on the base's own weights"),
        ({"oft_blocks": (4, 8, 8)}, "is OFT, which depends on the base's own weights"),
    ],
)
def test_kinds_that_need_the_base_are_refused(run_node, parts, words):
    model = tiny.patcher(tiny.SMALLEST)
    name = "middle_block.1.transformer_blocks.0.attn1.to_q"
    lora = tiny.random_lora({name: (32, 32)}, 2) if "dora_scale" in parts else {}
    lora |= {f"{COMFY_PREFIX}{name}.{part}": torch.ones(shape) for part, shape in parts.items()}
    with pytest.raises(ValueError, match="^Bespoke Inject LoRA: ") as error:
        masked(run_node, model, lora, left_half())
    assert words in str(error.value)


def test_a_lora_of_time_alone_and_an_unknown_class_are_refused(run_node):
    model = tiny.patcher(tiny.SMALLEST)
    shape = tuple(model.model.diffusion_model.time_embed[0].weight.shape)
    with pytest.raises(ValueError, match="nothing of .* has a place in the picture"):
        masked(run_node, model, tiny.random_lora({"time_embed.0": shape}, 2), left_half())

    models = families.made("sd15")
    text = {key: tensor for key, tensor in lora_of(models).items() if key.startswith("text_encoders")}
    with pytest.raises(ValueError, match="adapts the text encoder only, and a prompt is encoded for the whole picture"):
        run_node("BespokeInjectLora", **ONE, model=models[0], clip=models[1], lora=text, mask=left_half())

    class Other(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="mask is for models whose layers are known by name .* is a Other"):
        layout_of(Other())


def test_the_identity_of_a_masked_model(run_node):
    """A training on it is another run with another mask, and the same one after a call of the model."""
    from bespoke.nodes.bridge.identity import of_patcher

    model = tiny.patcher(tiny.SMALLEST)
    lora = tiny.random_lora(tiny.linear_layers(model), 2)
    one, other = (masked(run_node, model, lora, left_part(share)) for share in (0.5, 0.25))
    before = of_patcher(one)
    assert before.unread == ()
    assert of_patcher(other).text != before.text
    tiny.predict(one)
    assert of_patcher(one).text == before.text
