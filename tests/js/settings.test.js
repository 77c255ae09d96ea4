// Definitions of settings and commands.

import assert from "node:assert/strict";
import { test } from "node:test";

import { commandDefinitions, KEYS, MENU, settingDefinitions, settingReader } from "../../js/settings.js";

test("a setting has the page's value, or its default where the page has none", () => {
  const getSetting = settingReader((id) => ({ "Bespoke.CurveHeight": 200, "Bespoke.Toasts": false })[id]);
  assert.equal(getSetting("CurveHeight"), 200);
  assert.equal(getSetting("Toasts"), false);
  assert.equal(getSetting("SampleHeight"), 64);
});

test("every setting has an id of this pack, a category and a default", () => {
  const definitions = settingDefinitions();
  assert.equal(new Set(definitions.map(({ id }) => id)).size, 6);
  for (const { id, category, defaultValue } of definitions) {
    assert.match(id, /^Bespoke\.\w+$/);
    assert.deepEqual([category[0], category[2]], ["Bespoke", id.split(".")[1]]);
    assert.notEqual(defaultValue, undefined);
  }
});

test("keys and menu entries name commands that exist", () => {
  const actions = { goToTraining: () => "go", finishTraining: async () => {} };
  const commands = commandDefinitions(actions);
  const ids = new Set([...commands.map(({ id }) => id), "Workspace.ToggleSidebarTab.bespoke-runs"]);
  for (const { commandId } of KEYS) assert.ok(ids.has(commandId), commandId);
  for (const id of MENU.flatMap((entry) => entry.commands)) assert.ok(ids.has(id), id);
  assert.equal(commands[0].function, actions.goToTraining);
  assert.equal(commands[1].function, actions.finishTraining);
});
