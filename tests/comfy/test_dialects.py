"""The layers of every family in every dialect: prefixes, separators and namings in all their combinations.

The oracle for the names and for the rows of fused layers is diffusers' conversion of a checkpoint
(`loaders/single_file_utils.py` of 0.42), run on a state dict whose rows are numbered: a converted tensor says which
rows of which weight it is. musubi-tuner's model of Z-Image has diffusers' names.
"""

import functools
import itertools
import re

import families
import pytest
import torch
from bespoke.nodes.lora.keys import keys_of, swapped_halves
from bespoke.training.formats import from_diffusers
from bespoke.training.layer_names.dialects import PREFIXES
from bespoke.training.layer_names.parts import DOWN, split_key

SEPARATORS = (".", "_")
CONVERSIONS = {
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "flux_fill": "convert_flux_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "z_image": "convert_z_image_transformer_checkpoint_to_diffusers",
    "lumina2": "convert_lumina2_to_diffusers",
    "wan": "convert_wan_transformer_to_diffusers",
    "wan22": "convert_wan_transformer_to_diffusers",
}
# Widths that diffusers' code has as constants. Rows are scaled to them, and the answers back.
WIDTHS = {"flux": (3072, 64), "flux_fill": (3072, 64), "chroma": (3072, 64), "lumina2": (2304, 96)}


@functools.cache
def base_of(name):
    # Lumina 2's own share of heads, three queries for each key, which diffusers' code takes for granted.
    more = {"n_heads": 3, "n_kv_heads": 1, "axes_dims": [8, 12, 12]}
    return families.MAKERS[name](**more)[0].model if name == "lumina2" else families.made(name)[0].model


def own_rows(base):
    """{own name without prefix: rows} of every tensor of the diffusion model."""
    return {name: tensor.shape[0] if tensor.ndim else 1 for name, tensor in base.diffusion_model.state_dict().items()}


def by_diffusers(name, base):
    """{diffusers' name: (own key without prefix, rows as a list)} by diffusers' own conversion."""
    from diffusers.loaders import single_file_utils as theirs

    wide, narrow = WIDTHS.get(name, (1, 1))
    rows, start, owner, state = own_rows(base), 0, [], {}
    for key, count in rows.items():
        scaled = count * wide // narrow if count >= narrow else count
        checkpoint_key = re.sub(r"(query_norm|key_norm|norms\.\d+)\.weight$", r"\1.scale", key)  # as it is in files
        state[checkpoint_key if name != "lumina2" else key] = torch.arange(start, start + scaled, dtype=torch.float64)
        owner.append((start, scaled, key, count))
        start += scaled
    out = {}
    for key, tensor in getattr(theirs, CONVERSIONS[name])(dict(state)).items():
        first, scaled, own, count = next(o for o in reversed(owner) if o[0] <= int(tensor[0].item()) or o is owner[0])
        ratio = scaled // count if scaled % count == 0 else 1
        out[key] = own, [int(v - first) // ratio for v in tensor[::ratio].tolist()]
    return out


def by_diffusers_unet(base):
    """The same for a U-Net: diffusers' names of the modules, by `convert_ldm_unet_checkpoint`."""
    from diffusers.loaders import single_file_utils as theirs

    config = base.model_config.unet_config
    settings = {
        "layers_per_block": config["num_res_blocks"][0],
        "down_block_types": ["CrossAttnDownBlock2D"] * len(config["channel_mult"]),
        "class_embed_type": None,
        "addition_embed_type": "text_time" if config.get("adm_in_channels") else None,
        "transformer_layers_per_block": 1,
        "num_class_embeds": None,
    }
    rows = own_rows(base)
    state = {"model.diffusion_model." + key: torch.full((count,), i) for i, (key, count) in enumerate(rows.items())}
    out = theirs.convert_ldm_unet_checkpoint(state, settings)
    return {key: (list(rows)[int(t[0])], list(range(len(t)))) for key, t in out.items()}


def spelled(prefix, separator, name):
    return (f"{prefix}.{name}" if prefix else name).replace(".", separator)


def place(keys, name):
    """(the weight's key, its rows) that a name is read as; None where it is none."""
    ((key, _),) = from_diffusers({name + DOWN: torch.zeros(1)}).items()
    found = keys.find(split_key(key)[0])
    if found is None:
        return None
    key, rows = found[0], None
    if not isinstance(key, str):
        key, part, *function = key
        rows = range(keys.shapes[key][0]) if part is None else range(part[1], part[1] + part[2])
        if function:
            assert function == [swapped_halves]
            rows = swapped_halves(torch.tensor(list(rows))).tolist()
    return key, list(rows if rows is not None else range(keys.shapes[key][0] if keys.shapes[key] else 1))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_layer_in_every_dialect(comfyui, name):
    base = base_of(name)
    keys = keys_of(base, is_clip=False)
    own = {key: ("diffusion_model." + key, list(range(count))) for key, count in own_rows(base).items()}
    if name == "qwen_image":  # the checkpoint's names are diffusers'
        theirs = {}
    elif name in CONVERSIONS:
        theirs = by_diffusers(name, base)
    else:
        theirs = by_diffusers_unet(base)
    theirs = {key: ("diffusion_model." + key_of, rows) for key, (key_of, rows) in theirs.items()}
    wrong = []
    for namings in (own, theirs):
        for key, expected in namings.items():
            if not expected[0].endswith(".weight") and key.endswith(".bias"):
                continue  # files change a bias by its layer's name
            layer = key.removesuffix(".weight")
            for prefix, separator in itertools.product((*PREFIXES, ""), SEPARATORS):
                if (prefix, separator) == ("transformer", "_") and layer.startswith("blocks."):
                    continue  # `transformer_blocks` is another family's layer
                got = place(keys, spelled(prefix, separator, layer))
                if got != expected:
                    wrong.append((spelled(prefix, separator, layer), got and got[0], expected[0]))
    assert not wrong, wrong[:20]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_name_of_cores_table_is_read_as_core_reads_it(comfyui, name):
    """But for the rows of two families' fused layers, which ComfyUI's tables take from another model of their class."""
    import comfy.lora

    base = base_of(name)
    keys = keys_of(base, is_clip=False)
    other = []
    for layer, key in comfy.lora.model_lora_keys_unet(base, {}).items():
        weight, part = (key, None) if isinstance(key, str) else key[:2]
        if weight not in keys.shapes:
            continue
        found = keys.find(layer)
        ours = (None, None) if found is None else (found[0], None) if isinstance(found[0], str) else found[0][:2]
        if ours != (weight, part):
            other.append(layer)
    if name == "lumina2":  # three queries for each key: core's keys begin where they should and have too many rows
        assert other
        assert all(layer.endswith(("to_k", "to_v")) for layer in other)
    elif name == "flux2":  # diffusers has no parts of `linear1` there
        assert other
        assert all(re.search(r"single_transformer_blocks.\d.(attn.to_[qkv]|proj_mlp)$", layer) for layer in other)
    else:
        assert other == []


def test_a_file_of_musubis_z_image_changes_the_rows_of_the_fused_weight(comfyui, run_node):
    """Oracle: musubi-tuner's own conversion for ComfyUI, by hand: the three changes one below the other in `qkv`."""
    model = families.made("z_image")[0]
    weight, generator = model.model.diffusion_model.layers[0].attention.qkv.weight, torch.Generator().manual_seed(3)
    lora, parts = {}, {}
    for layer in ("to_q", "to_k", "to_v", "to_out_0"):
        up, down = (torch.randn(*shape, generator=generator) for shape in ((256, 2), (2, 256)))
        name = f"lora_unet_layers_0_attention_{layer}"
        lora |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(1.0)}
        parts[layer] = up @ down / 2
    injected, _, report, *_ = run_node(
        "BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=lora, query=0.5
    )
    assert "Applied to 4 layers" in report
    assert "matched nothing" not in report
    key = "diffusion_model.layers.0.attention."
    changed = injected.patch_weight_to_device(key + "qkv.weight", return_weight=True) - weight
    expected = torch.cat([0.5 * parts["to_q"], parts["to_k"], parts["to_v"]])
    assert (changed - expected).norm() < 1e-5 * expected.norm()
    out = model.model.diffusion_model.layers[0].attention.out.weight
    changed = injected.patch_weight_to_device(key + "out.weight", return_weight=True) - out
    assert (changed - parts["to_out_0"]).norm() < 1e-5 * parts["to_out_0"].norm()


@pytest.mark.parametrize("prefix", ["transformer.", "lycoris_"])
def test_parts_of_a_fused_weight_are_in_its_block_and_have_their_projection(comfyui, run_node, prefix):
    """Flux under diffusers' names: `blocks` and `key` reach q, k and v, which are a third each of the fused weight."""
    model = families.made("flux")[0]
    width, generator = model.model.diffusion_model.double_blocks[0].img_attn.qkv.in_features, torch.Generator()
    lora, parts = {}, []
    for layer in ("to_q", "to_k", "to_v"):
        for block in (0, 1):
            name = f"{prefix}transformer_blocks.{block}.attn.{layer}"
            name = name.replace(".", "_") if prefix == "lycoris_" else name
            up, down = (torch.randn(*shape, generator=generator) for shape in ((width, 2), (2, width)))
            lora |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            parts += [up @ down] if block == 1 else []
    injected, *_ = run_node(
        "BespokeInjectLora",
        model=model,
        lora_name="none",
        strength_model=1.0,
        lora=lora,
        key=0.5,
        blocks="double_blocks.1",
    )
    weights = [f"diffusion_model.double_blocks.{block}.img_attn.qkv.weight" for block in (0, 1)]
    state = model.model.state_dict()
    changes = [injected.patch_weight_to_device(key, return_weight=True) - state[key] for key in weights]
    assert changes[0].norm() == 0
    expected = torch.cat([parts[0], 0.5 * parts[1], parts[2]])
    assert (changes[1] - expected).norm() < 1e-5 * expected.norm()
