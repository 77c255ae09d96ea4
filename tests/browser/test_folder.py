"""A folder of pictures dropped on the image node becomes a training folder, and its captions are edited in place."""

from __future__ import annotations

import json
import shutil

import pytest
from host import ROOT


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_drop_a_folder_and_write_a_caption(open_page, server, workflow, screenshots, tmp_path, look):
    dropped = tmp_path / f"my pictures {look[0]}"
    shutil.copytree(server.base / "input" / "bespoke_pink", dropped)
    (dropped / "settings.json").write_text("{}")
    page = open_page(look=look)
    page.load(workflow("textual_inversion"))
    page.frame("BespokeImageFolder", 1.0)
    rows = "document.querySelectorAll('.bespoke-captions > div').length"
    count = page.tab.wait(rows)
    at = page.tab.evaluate(f"""(() => {{ const n = {page.node("BespokeImageFolder")}; const [x, y] = n.pos;
      const ds = app.canvas.ds;
      const r = app.canvas.canvas.getBoundingClientRect();
      return [r.x + (x + n.size[0] / 2 + ds.offset[0]) * ds.scale, r.y + (y - 12 + ds.offset[1]) * ds.scale]; }})()""")
    page.tab.drop([dropped], *at)
    page.tab.wait(
        f"{page.node('BespokeImageFolder')}.widgets.find((w) => w.name === 'folder').value === {dropped.name!r}"
    )
    # The list before had as many rows; the addresses of the pictures differ.
    page.tab.wait(
        f"new URL(document.querySelector('.bespoke-captions img').src).searchParams.get('folder') === {dropped.name!r}"
    )
    page.tab.wait(f"{rows} === {count}")
    made = server.base / "input" / dropped.name
    assert sorted(path.name for path in made.iterdir()) == sorted(
        path.name for path in dropped.iterdir() if path.suffix != ".json"
    )

    first = page.tab.evaluate("document.querySelector('.bespoke-captions img').title")
    page.tab.click(".bespoke-captions input")
    page.tab.evaluate("document.activeElement.select()")
    page.tab.type("a <b>pink</b> thing")
    page.tab.press("Enter")
    caption = made / first.replace(".png", ".txt")
    page.tab.wait(
        f"fetch('/bespoke/folder?name={dropped.name.replace(' ', '%20')}').then((a) => a.json()).then((f) => "
        "f.pictures[0].caption === 'a <b>pink</b> thing')"
    )
    assert caption.read_text("utf-8") == "a <b>pink</b> thing\n"
    page.picture(screenshots / f"folder_{look.replace(' ', '')}.png")
    assert "pink</b>" not in page.saved()


def test_a_dropped_folder_keeps_its_subfolders_and_the_list_follows_the_settings(open_page, server, workflow, tmp_path):
    """kohya's N_name subfolders, several captions a picture as lines, and captions that are not used."""
    dropped = tmp_path / "my concepts"
    pictures = sorted((server.base / "input" / "bespoke_pink").glob("*.png"))[:2]
    (dropped / "3_cat").mkdir(parents=True)
    for name, path in zip(("a.png", "b.png"), pictures, strict=True):
        shutil.copy(path, dropped / "3_cat" / name)
    (dropped / "3_cat" / "a.caption").write_text("one\ntwo\n")
    page = open_page(look="classic")
    page.load(workflow("textual_inversion"))
    page.frame("BespokeImageFolder", 1.0)
    page.tab.wait("document.querySelectorAll('.bespoke-captions > div').length")
    node = page.node("BespokeImageFolder")
    at = page.tab.evaluate(f"""(() => {{ const n = {node}; const [x, y] = n.pos; const ds = app.canvas.ds;
      const r = app.canvas.canvas.getBoundingClientRect();
      return [r.x + (x + n.size[0] / 2 + ds.offset[0]) * ds.scale, r.y + (y - 12 + ds.offset[1]) * ds.scale]; }})()""")
    page.tab.drop([dropped], *at)
    fields = "[...document.querySelectorAll('.bespoke-captions :is(input, textarea)')]"
    page.tab.wait(f'JSON.stringify({fields}.map((f) => [f.value, f.placeholder])).includes(\'["","cat"]\')')
    made = server.base / "input" / "my concepts" / "3_cat"
    assert sorted(path.name for path in made.iterdir()) == ["a.caption", "a.png", "b.png"]
    assert page.tab.evaluate(f"{fields}.map((f) => f.value)") == ["one two", ""]
    places = "[...document.querySelectorAll('.bespoke-place')].map((p) => p.textContent)"
    assert page.tab.evaluate(places) == ["3_cat: 2 pictures, repeats 3"]
    page.tab.wait(
        "[...document.querySelectorAll('.bespoke-captions img')].every((i) => i.complete && i.naturalWidth > 0)"
    )

    choose = f"{node}.widgets.find((w) => w.name === 'captions')"
    page.tab.evaluate(
        f"(() => {{ const w = {choose}; w.value = 'text files, one caption a line'; w.callback?.(w.value);"
        " app.graph.setDirtyCanvas(true, true); app.graph.change?.(); return true; })()"
    )
    page.tab.wait(f"{fields}[0]?.value === 'one\\ntwo'")
    page.tab.evaluate(
        f"(() => {{ const f = {fields}[0]; f.value = 'one\\n\\nthree'; "
        "f.dispatchEvent(new Event('change')); return true; })()"
    )
    page.tab.wait(f"{fields}[0]?.value === 'one\\nthree'")
    assert (made / "a.caption").read_text("utf-8") == "one\nthree\n"
    page.tab.evaluate(
        f"(() => {{ const w = {choose}; w.value = 'file names'; w.callback?.(w.value);"
        " app.graph.setDirtyCanvas(true, true); app.graph.change?.(); return true; })()"
    )
    page.tab.wait("document.querySelector('[data-panel=pictures]')?.innerText.includes('are not used')")


def test_no_folder_is_asked_for_before_one_is_chosen(open_page):
    """The first example as it is shipped: the choice of no folder is no folder's name."""
    page = open_page()
    page.load(json.loads((ROOT / "example_workflows" / "lora_train_and_use.json").read_text("utf-8")))
    page.tab.wait("document.querySelector('[data-panel=pictures]')?.innerText.includes('Drop a folder')")
    page.tab.evaluate("new Promise((done) => setTimeout(done, 1000))")
    assert not [error for error in page.tab.errors if "/bespoke/" in error]
