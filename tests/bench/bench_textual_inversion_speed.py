"""Seconds and memory of a textual inversion step compared with diffusers' documented loop and the bare networks.

    python3 dev.py test -m bench tests/bench/bench_textual_inversion_speed.py -s

Both learn one vector on the small model with the same weights, pictures and batch in float32 and alternate in one
process; the medians of the rounds' ratios are printed. diffusers' loop gets precomputed latents and has neither a data
loader nor a VAE here, in its favour. "bare" is CLIP and U-Net, forward and backward to the vector, without loss,
optimiser and tokenisation. Processor time is compared (wall time is printed too). Peak memory is the peak of torch's
allocator minus its start.
"""

import statistics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import peers

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]
WORD = 1000  # the row of the table that learns


@pytest.mark.parametrize("batch", [1, 4])
def test_step_beside_diffusers(small, run_node, small_checkpoint, batch):
    from bespoke.nodes.bridge.training_model.pseudo_word import clip_with_pseudo_word, embedding_table, text_encoders
    from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
    from helpers import sprite_set

    model, clip, vae = small
    images = sprite_set(1, 4, colour="pink", word="{word}")
    latents, rows = [], []
    for item in images.items:
        (latent,) = run_node("VAEEncode", pixels=item.pixels[None].float() / 255, vae=vae)
        latents.append(latent["samples"].clone() * 0.18215)
        (row,) = clip.tokenize(item.caption.replace("{word}", "cat"))["l"]
        rows.append([token for token, _ in row])
    latents, rows = torch.cat(latents), torch.tensor(rows)
    cat = text_encoders(clip)["clip_l"][0].tokenizer("cat")["input_ids"][1]
    rows[rows == cat] = WORD
    recipe = (
        peers.diffusers_unet(small_checkpoint),
        peers.transformers_clip(small_checkpoint),
        latents,
        rows,
        WORD,
        batch,
        5e-3,
    )
    theirs = peers.DiffusersInversion(*recipe)

    def new_diffusers_run() -> None:
        run = peers.DiffusersInversion(*recipe)
        for _ in range(2):
            run.step()

    def ours(steps: int) -> tuple[float, float]:
        return peers.steps_of(
            lambda: run_node(
                "BespokeTrainTextualInversion",
                model=model,
                clip=clip,
                vae=vae,
                images=images,
                name="w",
                init_text="red",
                vectors=1,
                steps=steps + 1,
                batch_size=batch,
                learning_rate=5e-3,
                seed=0,
                template="captions",
                precision="fp32",
                resume=False,
            )
        )

    vector = torch.nn.Parameter(embedding_table(clip, text_encoders(clip)["clip_l"][1])[[WORD]].clone())
    clip_with_word = clip_with_pseudo_word(clip, "w", {"clip_l": lambda: vector})
    sentences = [item.caption.replace("{word}", "embedding:w") for item in images.items[:batch]]
    timesteps, ones = torch.linspace(50, 950, batch).long(), torch.ones(batch, 4, 16, 16)
    with prepare_text_encoder(clip, None) as text:
        tokens = [[token for token, _ in clip_with_word.tokenize(sentence)["l"][0]] for sentence in sentences]
        text.encode(["a"], clip_with_word)  # sets clip skip and device

        def bare() -> None:
            context, _ = text.model.clip_l.encode(tokens)
            model.model.diffusion_model(latents[:batch], timesteps, context=context).backward(ones)

        contenders = {
            "ours": ours,
            "diffusers": lambda steps: peers.seconds(theirs.step, steps),
            "bare": lambda steps: peers.seconds(bare, steps),
        }
        times = {name: [] for name in contenders}
        for contend in contenders.values():
            contend(1)
        for number in range(7):
            for name in sorted(contenders, reverse=bool(number % 2)):
                times[name].append(contenders[name](8 if batch == 1 else 4))
    ratio, wall = (
        {
            name: statistics.median(b[kind] / a[kind] for a, b in zip(times["ours"], times[name], strict=True))
            for name in times
        }
        for kind in (0, 1)
    )
    shown = ", ".join(f"{name} {statistics.median(t[0] for t in values):.3f}" for name, values in times.items())
    memory = peers.peak_mb(lambda: ours(1)), peers.peak_mb(new_diffusers_run)
    print(
        f"\nbatch {batch}: processor seconds a step: {shown}; diffusers takes {ratio['diffusers']:.2f} x this "
        "pack's time (wall "
        f"{wall['diffusers']:.2f} x), this pack {1 / ratio['bare']:.2f} x the bare networks'; peak memory "
        f"{memory[0]:.0f} MB and {memory[1]:.0f} MB (short whole runs)"
    )
    assert ratio["diffusers"] >= 1.3
    if batch == 4:
        assert 1 / ratio["bare"] <= 1.15
    assert memory[0] <= memory[1]
