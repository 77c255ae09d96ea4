"""Judges what a picture shows: a small classifier of subject, colour, mood and ground, and the obedience of a model.

    python picture_judge.py --comfyui PATH --out FOLDER    the folder of picture_train.py; keeps the judge there too

The classifier learns from drawings of its own, from other seeds than those of the U-Net's training and with poses in
wider ranges, and is measured on a third set of drawings before it judges. It knows the words that are kept out of the
U-Net's training too (`octopus`, `teal`), so that a demo can count them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import figures  # noqa: E402

SEED = 310
WORDS = {
    "subject": (*figures.SUBJECTS, *figures.UNSEEN_SUBJECTS),
    "colour": (*figures.COLOURS, *figures.UNSEEN_COLOURS),
    "mood": figures.MOODS,
    "ground": figures.GROUNDS,
}
TRAIN, TEST = 2400, 300


class Judge(nn.Module):
    """Pictures [B, 3, 128, 128] in 0..1 to a dict of scores [B, words] for each of `WORDS`."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 96, 96), []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.heads = nn.ModuleDict({kind: nn.Linear(96 * 64, len(words)) for kind, words in WORDS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores before the softmax."""
        seen = self.trunk(pictures - 0.5)
        return {kind: head(seen) for kind, head in self.heads.items()}

    @torch.no_grad()
    def names(self, pictures: torch.Tensor) -> list[dict[str, str]]:
        """The likeliest word of each kind, a picture at a time."""
        self.eval()
        best = {kind: scores.argmax(1).tolist() for kind, scores in self(pictures).items()}
        return [{kind: WORDS[kind][best[kind][i]] for kind in WORDS} for i in range(len(pictures))]


def drawings(seed: int, count: int) -> tuple[torch.Tensor, list[figures.Figure]]:
    """`count` drawings [count, 3, 128, 128] uint8 of all words, seen and kept out, and what they show."""
    rng = np.random.default_rng((SEED, seed))
    kinds = []
    for _ in range(count):
        words = {kind: WORDS[kind][rng.integers(len(WORDS[kind]))] for kind in ("subject", "colour")}
        kinds.append(
            figures.random_figure(rng, **words, scale=float(rng.uniform(0.9, 1.1)), tilt=float(rng.uniform(-6, 6)))
        )
    pictures = np.stack([np.asarray(figures.image(kind)) for kind in kinds])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), kinds


def labels(kinds: list[figures.Figure]) -> dict[str, torch.Tensor]:
    """The index of each figure's words."""
    return {kind: torch.tensor([WORDS[kind].index(getattr(k, kind)) for k in kinds]) for kind in WORDS}


def train(pictures: torch.Tensor, kinds: list[figures.Figure], epochs: int = 14) -> Judge:
    """Train on drawings with noise, blur and shifts, so that a model's softness does not decide."""
    torch.manual_seed(SEED)
    wanted, judge, count = labels(kinds), Judge().train(), len(kinds)
    steps = epochs * (count // 32)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        which = torch.randint(count, (32,))
        batch = pictures[which].float() / 255
        if torch.rand(()) < 0.5:
            batch = F.avg_pool2d(batch, 3, 1, 1, count_include_pad=False)
        batch = torch.roll(batch, torch.randint(-3, 4, (2,)).tolist(), (2, 3))
        batch = batch + torch.randn_like(batch) * 0.06 * torch.rand(())
        loss = sum(F.cross_entropy(scores, wanted[kind][which]) for kind, scores in judge(batch).items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def shares(judge: Judge, pictures: torch.Tensor, kinds: list[figures.Figure]) -> dict[str, float]:
    """The share of pictures whose likeliest word is the figure's, for each kind of word."""
    named = [name for i in range(0, len(pictures), 32) for name in judge.names(pictures[i : i + 32])]
    return {
        kind: float(np.mean([name[kind] == getattr(k, kind) for name, k in zip(named, kinds, strict=True)]))
        for kind in WORDS
    }


def load(path: Path) -> Judge:
    """The judge stored at `path`, trained first where the file is missing."""
    judge = Judge()
    if not path.exists():
        torch.save(train(*drawings(1, TRAIN)).state_dict(), path)
    judge.load_state_dict(torch.load(path, weights_only=True))
    return judge.eval()


def prompts(count: int) -> list[figures.Figure]:
    """Figures of the words that the U-Net is trained on, each subject and colour about as often."""
    rng = np.random.default_rng((SEED, 3))
    colours, subjects = list(figures.COLOURS), figures.SUBJECTS
    return [
        figures.random_figure(
            rng, subject=subjects[i % len(subjects)], colour=colours[(i // len(subjects) + i) % len(colours)]
        )
        for i in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    import picture_model as pm
    import picture_train as pt
    import vae

    judge = load(args.out / "judge.pt")
    pictures, kinds = drawings(2, TEST)
    print("drawings", shares(judge, pictures.float() / 255, kinds), flush=True)
    narrow_vae = vae.load(args.out / "vae.pt")
    pt.prepare(args.comfyui)
    unet, text = pt.new_unet(), pm.Text()
    state = torch.load(args.out / "state.pt", weights_only=True)
    unet.load_state_dict(state["average"])
    asked, drawn = prompts(args.prompts), []
    for i in range(0, len(asked), 10):
        texts = [figures.say(k) for k in asked[i : i + 10]]
        with torch.no_grad():
            drawn.append(narrow_vae.decode(pt.sample(unet.eval(), text, texts, i, args.steps)).clamp(0, 1))
    print(f"prompts after {state['done'] * pt.BATCH} samples", shares(judge, torch.cat(drawn), asked))


if __name__ == "__main__":
    main()
