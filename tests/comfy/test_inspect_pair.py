"""Inspect LoRA with a second LoRA: cosines, shared directions and metadata, against the whole changes in float64."""

import math

import pytest
import tiny
import torch
from bespoke.nodes.lora.inspection.compare import NEAR, compare
from bespoke.nodes.lora.inspection.comparison_report import comparison_report
from bespoke.nodes.lora.named_lora import NamedLora
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import layers_of


@pytest.fixture(scope="module")
def layers(comfyui):
    return tiny.linear_layers(tiny.patcher())


def named(lora, name="a", **meta):
    return NamedLora(lora, name, meta)


def whole(lora):
    """{layer: up @ down * alpha / rank, in float64}."""
    return {
        layer: parts[".lora_up.weight"].double()
        @ parts[".lora_down.weight"].double()
        * float(parts[".alpha"])
        / parts[".lora_down.weight"].shape[0]
        for layer, parts in layers_of(lora).items()
    }


def mixed(one, other, share):
    """One LoRA with a share of another's change added: the factors side by side."""
    out = {}
    for layer, parts in layers_of(one).items():
        theirs = layers_of(other)[layer]
        scales = [float(each[".alpha"]) / each[".lora_down.weight"].shape[0] for each in (parts, theirs)]
        ups = [each[".lora_up.weight"] * scale for each, scale in zip((parts, theirs), scales, strict=True)]
        out[f"{layer}.lora_up.weight"] = torch.cat([ups[0], share * ups[1]], 1)
        out[f"{layer}.lora_down.weight"] = torch.cat([parts[".lora_down.weight"], theirs[".lora_down.weight"]])
        out[f"{layer}.alpha"] = torch.tensor(float(len(out[f"{layer}.lora_down.weight"])))
    return out


def test_cosines_are_those_of_the_whole_changes(layers):
    """Frobenius inner products of the matrices themselves, overall, by block and by projection."""
    one, other = (tiny.random_lora(layers, rank, 2.0, seed) for seed, rank in ((1, 3), (2, 5)))
    other = mixed(other, one, 0.6)
    found = compare(named(one), named(other))
    a, b = whole(one), whole(other)

    def cosine(some):
        ab = sum(float((a[layer] * b[layer]).sum()) for layer in some)
        return ab / math.sqrt(
            sum(float(a[layer].square().sum()) for layer in some)
            * sum(float(b[layer].square().sum()) for layer in some)
        )

    assert found.cosine() == pytest.approx(cosine(a), abs=1e-5)
    for row in found.rows:
        some = [each.name for each in found.shared if each.row == row]
        assert found.cosine(row) == pytest.approx(cosine(some), abs=1e-5)
    assert found.alone == (0, 0)


def test_shared_directions_are_the_principal_angles_of_the_strongest(layers):
    """Björck and Golub 1973: the singular values of Qa^T Qb, Q the singular vectors that hold 90 % of the energy."""
    one, other = tiny.random_lora(layers, 4, 2.0, 1), tiny.random_lora(layers, 6, 2.0, 2)
    other = mixed(other, one, 1.0)
    a, b = whole(one), whole(other)
    for each in compare(named(one), named(other)).shared:
        bases = []
        for delta in (a[each.name], b[each.name]):
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            k = int(((s**2).cumsum(0) < 0.9 * (s**2).sum()).sum()) + 1
            bases.append((u[:, :k], vh[:k].t()))
        for side, overlap in enumerate((each.out, each.inner)):
            qa, qb = bases[0][side], bases[1][side]
            wanted = torch.linalg.svdvals(qa.t() @ qb)
            assert torch.allclose(torch.tensor(overlap.cosines).double(), wanted, atol=1e-4)
            assert overlap.share == pytest.approx(float(wanted.square().mean()), abs=1e-4)
            assert overlap.near == int((wanted >= NEAR).sum())
            assert overlap.chance == max(qa.shape[1], qb.shape[1]) / len(qa)


def test_a_lora_is_alike_itself_and_unlike_another(layers):
    one, other = named(tiny.random_lora(layers, seed=1)), named(tiny.random_lora(layers, seed=2), "b")
    same = compare(one, named({key: -2.0 * t if "up" in key else t for key, t in one.items()}, "c"))
    assert same.cosine() == pytest.approx(-1.0)
    assert all(each.out.share == pytest.approx(1.0, abs=1e-5) for each in same.shared)
    assert "strength -0.50 comes nearest" in comparison_report(one, one, same)
    assert abs(compare(one, other).cosine()) < 0.1


def test_names_of_two_programs_are_one_layer(layers):
    one = tiny.random_lora(layers, seed=1)
    kohya = {}
    for key, tensor in one.items():
        layer, _, part = key.removeprefix("diffusion_model.").partition(".lora_")
        layer, part = (layer, f".lora_{part}") if part else (layer.removesuffix(".alpha"), ".alpha")
        kohya[f"lora_unet_{layer.replace('.', '_')}{part}"] = tensor
    found = compare(named(one), named(kohya))
    assert len(found.shared) == len(layers)
    assert found.cosine() == pytest.approx(1.0)


def test_both_spellings_of_a_layer_count(layers):
    """A file that has each layer under kohya's and under ComfyUI's name is the sum of both, by the whole changes."""
    one, other = (tiny.random_lora(layers, 2, seed=seed) for seed in (1, 2))
    both = dict(one)
    for key, tensor in other.items():
        layer, _, part = key.removeprefix("diffusion_model.").partition(".lora_")
        layer, part = (layer, f".lora_{part}") if part else (layer.removesuffix(".alpha"), ".alpha")
        both[f"lora_unet_{layer.replace('.', '_')}{part}"] = tensor
    first, second = whole(one), whole(other)
    product = sum(float((first[name] * (first[name] + second[name])).sum()) for name in first)
    norms = [
        sum(float(change.square().sum()) for change in some)
        for some in (first.values(), (first[name] + second[name] for name in first))
    ]
    found = compare(named(one), named(both))
    assert found.cosine() == pytest.approx(product / math.sqrt(norms[0] * norms[1]), abs=1e-5)
    assert abs(found.cosine() - 1 / math.sqrt(2)) < 0.1


def test_the_node_shows_both(run_node, layers):
    one = named(tiny.random_lora(layers, 4, seed=1), "first", ss_session_id="12", ss_seed="3", ss_lr="1")
    other = named(tiny.random_lora(layers, 8, seed=2), "second", ss_session_id="12", ss_seed="4", ss_lr="1")
    plain = run_node("BespokeInspectLora", lora_name="none", lora=one)
    report, heatmap = run_node("BespokeInspectLora", lora_name="none", lora=one, compare_with=other)
    assert report.endswith(plain[0])
    assert f"A = first, B = second: {len(layers)} layers are changed by both, 0 by A alone" in report
    assert "One training made both: their session of kohya's trainer is 12." in report
    assert "Metadata: 2 entries are alike, 1 differ (A | B):\n  ss_seed: 3 | 4" in report
    assert heatmap.shape[1] > plain[1].shape[1]
    wider = named(tiny.random_lora({name: (rows + 1, columns) for name, (rows, columns) in layers.items()}))
    with pytest.raises(InputError, match="compare LoRAs of one base only"):
        run_node("BespokeInspectLora", lora_name="none", lora=one, compare_with=wider)
