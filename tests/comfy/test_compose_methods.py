"""Compose LoRAs beyond the sum: TIES and DARE against PEFT, balance by its definition, ranks by what is kept."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from bespoke.nodes.lora import kinds
from bespoke.nodes.lora.composition import methods
from bespoke.nodes.lora.composition.compose import compose
from bespoke.nodes.lora.composition.methods import How, balanced, own_effects
from bespoke.nodes.lora.composition.ranks import rank_by
from bespoke.nodes.lora.composition.source import Source
from bespoke.nodes.lora.named_lora import NamedLora
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import layers_of

pytestmark = pytest.mark.usefixtures("comfyui")
LAYERS = {"first": (12, 20), "second": (16, 8)}
STRENGTHS = [0.7, -0.4, 1.3]
RANKS = (3, 2, 4)


class Net(torch.nn.Module):
    """Two linear layers of the shapes of `LAYERS`, for PEFT."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(inner, out, bias=False) for out, inner in LAYERS.values())


@pytest.fixture(scope="module")
def loras():
    """Three LoRAs of ranks 3, 2 and 4; alpha is 2 in all."""
    return [
        NamedLora(tiny.random_lora(LAYERS, rank, 2.0, seed, 1.0), f"lora {seed}", {}) for seed, rank in enumerate(RANKS)
    ]


@pytest.fixture(scope="module")
def peft_net(loras):
    """A PeftModel with the three LoRAs as adapters a0, a1 and a2."""
    import peft

    net = None
    for number, (lora, rank) in enumerate(zip(loras, RANKS, strict=True)):
        config = peft.LoraConfig(r=rank, lora_alpha=2, target_modules=list(LAYERS))
        if net is None:
            net = peft.get_peft_model(Net(), config, adapter_name="a0")
        else:
            net.add_adapter(f"a{number}", config)
        for name in LAYERS:
            layer = net.base_model.model.get_submodule(name)
            layer.lora_A[f"a{number}"].weight.data = lora[f"diffusion_model.{name}.lora_down.weight"].clone()
            layer.lora_B[f"a{number}"].weight.data = lora[f"diffusion_model.{name}.lora_up.weight"].clone()
    return net


def sources(loras, strengths=None):
    return [Source(*pair) for pair in zip(loras, strengths or [1.0] * len(loras), strict=True)]


def deltas(lora):
    """{layer: its whole change}"""
    found = {}
    for layer, parts in layers_of(lora).items():
        made = kinds.factors(layer, parts)
        found[layer.removeprefix("diffusion_model.")] = made.up @ made.down
    return found


def of_peft(net, kind, **options):
    """{layer: change} of PEFT's own combination of the three."""
    name = "combined"
    net.add_weighted_adapter(["a0", "a1", "a2"], STRENGTHS, name, combination_type=kind, **options)
    out = {layer: net.base_model.model.get_submodule(layer).get_delta_weight(name).detach() for layer in LAYERS}
    net.delete_adapter(name)
    return out


def check(ours, theirs):
    assert ours.keys() == theirs.keys()
    for layer, change in theirs.items():
        assert float(change.norm()) > 0.1
        assert float((ours[layer] - change).norm()) < 1e-5 * float(change.norm()), layer


# --- PEFT ------------------------------------------------------------------------------------------------------------


def test_the_sum_is_pefts_cat(loras, peft_net):
    """PEFT's "cat" is the exact sum of strength * alpha / rank * B A, with the ranks added."""
    check(deltas(compose(sources(loras, STRENGTHS)).lora), of_peft(peft_net, "cat"))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_rank_is_pefts_svd(loras, peft_net, rank):
    ours = deltas(compose(sources(loras, STRENGTHS), How(rank)).lora)
    check(ours, of_peft(peft_net, "svd", svd_rank=rank))


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("rank", [4, 8])
def test_ties_is_pefts(loras, peft_net, rank, density):
    """ "ties_svd" with the majority by "total" cuts, elects and merges the whole changes, and takes their rank."""
    ours = deltas(compose(sources(loras, STRENGTHS), How(rank, "ties", density)).lora)
    check(ours, of_peft(peft_net, "ties_svd", svd_rank=rank, density=density))


@pytest.mark.parametrize("density", [0.3, 0.8])
def test_dare_is_pefts_on_the_same_draws(loras, peft_net, density, monkeypatch):
    """ "dare_linear_svd", with PEFT's random numbers replaced by those that are drawn here."""
    import peft.utils.merge_utils

    calls = []

    def pruned(tensor, density, rescale):
        layer, number = list(LAYERS)[len(calls) // 3], len(calls) % 3
        calls.append(layer)
        assert rescale
        return tensor * methods.drawn(tensor.shape, density, f"diffusion_model.{layer}/{number}") / density

    monkeypatch.setattr(peft.utils.merge_utils, "random_pruning", pruned)
    ours = deltas(compose(sources(loras, STRENGTHS), How(8, "dare", density)).lora)
    check(ours, of_peft(peft_net, "dare_linear_svd", svd_rank=8, density=density))
    assert len(calls) == 6


def test_dare_keeps_the_mean_and_is_the_same_every_time(loras):
    """By its definition: the expectation of the result is the sum, and of n numbers about density * n stay."""
    change = deltas(loras[0])["first"]
    draws = [methods.dare([change], [1.0], 0.4, f"layer {i}") for i in range(3000)]
    assert float((torch.stack(draws).mean(0) - change).norm()) < 0.05 * float(change.norm())
    kept = torch.stack([(draw != 0).float().mean() for draw in draws]).mean()
    assert float(kept) == pytest.approx(0.4, abs=0.005)
    one, two = (compose(sources(loras), How(0, "dare", 0.5)).lora for _ in range(2))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_dense_methods_have_the_rank_of_the_sum(loras):
    done = compose(sources(loras), How(0, "ties", 0.5))
    for parts in layers_of(done.lora).values():
        assert parts[".lora_down.weight"].shape[0] == min(
            sum(RANKS), 8 if parts[".lora_up.weight"].shape[0] == 16 else 12
        )
    assert "TIES: of each change the 50% largest numbers" in done.report
    assert "that of the sum" in done.report


def test_ties_by_hand(loras):
    """Three numbers of two changes: the smaller ones are cut, opposite signs elect, and the others' mean stays."""
    one, two = torch.tensor([[4.0, -1.0, 3.0, 0.5]]), torch.tensor([[-1.0, 2.0, 5.0, -6.0]])
    made = methods.ties([one, two], [1.0, 2.0], 0.5)
    # cut to [4, 0, 3, 0] and [0, 0, 5, -6]; the signs of the sums are +, +, +, -
    assert made.tolist() == [[4.0, 0.0, (3.0 + 2 * 5.0) / 2, -12.0]]


# --- balance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_balance_gives_each_lora_its_own_effect(seed):
    """By the definition: the projection of the sum on each LoRA's own change is 1, from the whole matrices.

    The LoRAs share a part, so that in a plain sum each acts by more than 1 or by less.
    """
    shared = tiny.random_lora(LAYERS, 2, None, seed + 50, 1.0)
    signs = (1.0, 0.8, -0.6)
    files = []
    for number, sign in enumerate(signs):
        own = tiny.random_lora(LAYERS, 2, None, 10 * seed + number, 1.0)
        joined = {}
        for key, tensor in own.items():
            up = "up" in key
            joined[key] = torch.cat([tensor, (sign if up else 1.0) * shared[key]], 1 if up else 0)
        files.append(NamedLora(joined, str(number), {}))
    strengths = [1.0, 0.5, 2.0]
    done = compose(sources(files, strengths), How(0, "balance"))
    total, plain = deltas(done.lora), deltas(compose(sources(files, strengths)).lora)
    for lora, strength in zip(files, strengths, strict=True):
        own = {layer: strength * change for layer, change in deltas(lora).items()}
        square = sum(float(change.double().square().sum()) for change in own.values())
        effect = sum(float((total[layer] * change).double().sum()) for layer, change in own.items()) / square
        before = sum(float((plain[layer] * change).double().sum()) for layer, change in own.items()) / square
        assert effect == pytest.approx(1.0, abs=1e-3)
        assert abs(before - 1.0) > 0.01
    assert "balanced: times" in done.report
    assert "in a plain sum: A" in done.report


def test_balance_of_one_lora_twice_is_refused(loras):
    with pytest.raises(InputError, match="A and B make the same change, up to a factor"):
        compose(sources([loras[0], loras[0]]), How(0, "balance"))
    assert balanced(torch.diag(torch.tensor([4.0, 9.0, 0.0], dtype=torch.float64)), "ABC") == [1.0, 1.0, 1.0]
    effects = own_effects(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), [1.0, 1.0])
    assert effects == [1.5, 1.5]
    assert balanced(torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64), "AB") == pytest.approx([2 / 3, 2 / 3])


def mixture(one, other, share):
    """A LoRA whose change is one's plus `share` times the other's."""
    made = compose([Source(one), Source(other, share)]).lora
    return NamedLora(dict(made), "mixture", {})


def test_balance_names_the_loras_that_depend_on_each_other(loras):
    """C = A + B / 2 has no strengths of its own, though no two of them are one: by linear algebra, G is singular."""
    third = mixture(loras[0], loras[1], 0.5)
    with pytest.raises(InputError, match="^A, B, C depend on each other: the change of one is a sum of the others'"):
        compose(sources([*loras[:2], third]), How(0, "balance"))
    with pytest.raises(InputError, match="^A and C make the same change, up to a factor .cosine -1.0000"):
        compose(sources([loras[0], loras[1], loras[0]], [1.0, 1.0, -0.5]), How(0, "balance"))


def test_balance_warns_of_factors_far_from_1(loras):
    """By hand: B = 10 (A + a tenth of another one): both factors are large, and A would go in the wrong way round."""
    near = mixture(loras[0], loras[1], 0.1)
    report = compose(sources([loras[0], near], [1.0, 10.0]), How(0, "balance")).report
    assert "The factors of A, B are far from 1" in report
    assert "far from 1" not in compose(sources(loras), How(0, "balance")).report


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "share", "rank"),
    [
        # squares 64, 16, 4, 1 of 85: the first is .753 of them, two .941, three .988
        ("energy", 0.75, 1),
        ("energy", 0.76, 2),
        ("energy", 0.95, 3),
        ("energy", 1.0, 4),
        # the norm's share: its square is the share of the squares (kohya's `index_sv_fro`)
        ("sv_fro", math.sqrt(0.76), 2),
        ("sv_fro", 0.9, 2),
        ("sv_fro", 0.98, 3),
        # those above 8 / share (kohya's `index_sv_ratio`)
        ("sv_ratio", 1.0, 1),
        ("sv_ratio", 3.0, 2),
        ("sv_ratio", 4.0, 2),
        ("sv_ratio", 4.1, 3),
        ("sv_ratio", 100.0, 4),
    ],
)
def test_ranks_by_what_is_kept(kind, share, rank):
    assert rank_by(torch.tensor([8.0, 4.0, 2.0, 1.0]), share, kind) == rank
    assert rank_by(torch.zeros(4), share, kind) == 1


def test_energy_decides_each_layers_rank(run_node, loras):
    """By the singular values of the whole sum: the least rank that keeps 90 %, whatever `rank` says."""
    whole = deltas(compose(sources(loras)).lora)
    wired = {f"lora{i}": lora for i, lora in enumerate(loras)}
    lora, report, _ = run_node("BespokeComposeLoras", loras=wired, rank=1, energy=0.9)
    for layer, change in whole.items():
        squares = torch.linalg.svdvals(change.double()) ** 2
        shares = squares.cumsum(0) / squares.sum()
        wanted = int((shares < 0.9).sum()) + 1
        assert lora[f"diffusion_model.{layer}.lora_down.weight"].shape[0] == wanted
        kept = deltas(lora)[layer].double().square().sum() / squares.sum()
        assert float(kept) == pytest.approx(float(shares[wanted - 1]), rel=1e-4)
    assert "by energy 0.9 in each layer" in report


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"method": "melt"}, "method is 'melt'"),
        ({"energy_kind": "most"}, "energy_kind is 'most'"),
        ({"density": 0.0, "method": "ties"}, "density is 0.0"),
        ({"energy": 1.5}, "energy is 1.5; with energy_kind energy give a share"),
        ({"energy": 0.5, "energy_kind": "sv_ratio"}, "give 1 to 10000, such as 20"),
    ],
)
def test_bad_settings_are_named(run_node, loras, inputs, words):
    with pytest.raises(ValueError, match="^Bespoke Compose LoRAs: ") as error:
        run_node("BespokeComposeLoras", loras={"lora0": loras[0]}, **inputs)
    assert words in str(error.value)
