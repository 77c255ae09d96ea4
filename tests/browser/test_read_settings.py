"""A LoRA file that is chosen, or dropped on the trainer, sets its widgets; one undo takes it back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

TRAINER = "BespokeTrainLora"
DIALOG = "document.querySelector('dialog[open]')"
TEXT = f"({DIALOG}?.innerText ?? '')"
META = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "12",
    "ss_network_alpha": "6.0",
    "ss_learning_rate": "0.0003",
    "ss_max_train_steps": "77",
    "ss_optimizer": "torch.optim.adamw.AdamW",
    "ss_clip_skip": "2",
    "ss_training_comment": "<b>bold</b>",
    "ss_loss_type": "<img src=x onerror=window.hacked=1>",
}
EXPECTED = {"rank": 12, "alpha": 6, "learning_rate": 0.0003, "steps": 77, "targets": "attention + feed-forward"}


def values(page) -> dict:
    return page.tab.evaluate(
        f"(() => {{ const n = {page.node(TRAINER)}; return Object.fromEntries({list(EXPECTED)}.map((name) => "
        "[name, n.widgets.find((w) => w.name === name).value])); })()"
    )


def head_of(page) -> list[float]:
    """The middle of the node's title on the screen."""
    return page.tab.evaluate(f"""(() => {{ const n = {page.node(TRAINER)}; const [x, y] = n.pos;
      const ds = app.canvas.ds; const r = app.canvas.canvas.getBoundingClientRect();
      return [r.x + (x + n.size[0] / 2 + ds.offset[0]) * ds.scale, r.y + (y - 12 + ds.offset[1]) * ds.scale]; }})()""")


def check_and_undo(page, before: dict) -> None:
    """The dialog says what was set and what has no equivalent; after it is closed one undo restores the node."""
    text = page.tab.evaluate(TEXT)
    assert "rank: 12" in text
    assert "ss_clip_skip is 2: wire CLIP Set Last Layer" in text
    assert "<img src=x" in text  # as text
    assert not page.tab.evaluate("window.hacked === 1")
    assert values(page) == EXPECTED
    page.tab.press("Escape")
    page.tab.wait(f"!{DIALOG}")
    page.tab.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    page.tab.wait(f"{page.node(TRAINER)}?.widgets.find((w) => w.name === 'rank').value === {before['rank']}")
    assert values(page) == before
    # Nodes 2.0 shows the panel of the removed node until the next frames.
    page.tab.evaluate("new Promise((done) => setTimeout(done, 500))")


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_a_dropped_file_and_a_chosen_one_set_the_widgets(open_page, server, workflow, screenshots, tmp_path, look):
    dropped = tmp_path / "downloaded.safetensors"
    tensors = {"lora_unet_x.lora_down.weight": torch.zeros(12, 4), "lora_unet_x.lora_up.weight": torch.zeros(4, 12)}
    save_file(tensors, dropped, META)
    loras = server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    save_file(tensors, loras / "read_settings.safetensors", META)
    page = open_page(look=look)
    page.load(workflow("lora_train_and_use"))
    page.frame(TRAINER, 1.0)
    page.tab.wait("!!document.querySelector('[data-panel=read] button')")
    page.tab.evaluate("new Promise((done) => setTimeout(done, 500))")
    before = values(page)
    assert before["rank"] != 12

    page.tab.drop([dropped], *head_of(page))
    page.tab.wait(f"{TEXT}.includes('downloaded.safetensors, trained with kohya')")
    page.picture(screenshots / f"read_settings_{look.replace(' ', '')}.png")
    check_and_undo(page, before)

    page.tab.wait("!!document.querySelector('[data-panel=read] button')")
    page.tab.evaluate("document.querySelector('[data-panel=read] button').click()")
    page.tab.wait(f"!!{DIALOG}?.querySelector('select')")
    page.tab.evaluate(f"{DIALOG}.querySelector('select').value = 'read_settings.safetensors'")
    page.tab.evaluate(f"{DIALOG}.querySelector('button[type=submit]').click()")
    page.tab.wait(f"{TEXT}.includes('read_settings.safetensors, trained with kohya')")
    check_and_undo(page, before)

    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    page.tab.drop([tmp_path / "broken.safetensors"], *head_of(page))
    page.tab.wait(f"{TEXT}.includes('broken.safetensors cannot be read')")
    page.tab.press("Escape")
    assert values(page) == before
