// A change of the language reaches what is shown: no script keeps a text from the time when it was loaded. The page makes
// all nodes anew after the change, so a panel that reads its texts when it is made has the new ones.

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { register } from "node:module";
import { test } from "node:test";

const SCRIPTS = new URL("../../js/", import.meta.url);

// Stand-ins for what the page serves: `app` keeps the extension, `api` is an event target.
const PAGE = {
  "app.js": "export const app = { registerExtension(extension) { globalThis.bespokeExtension = extension; } };",
  "api.js": "export const api = new EventTarget();",
};
const hook = `
  const page = ${JSON.stringify(PAGE)};
  export function resolve(specifier, context, next) {
    const name = specifier.match(/\\/scripts\\/(app\\.js|api\\.js)$/)?.[1];
    if (!name) return next(specifier, context);
    return { url: "data:text/javascript," + encodeURIComponent(page[name]), shortCircuit: true };
  }`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);

test("no script reads a text while it is loaded", async () => {
  const { setTexts, t } = await import(new URL("words.js", SCRIPTS).href);
  let asked = 0;
  setTexts({ en: { bespoke: { runs: "Runs" } }, fr: { bespoke: { runs: "Entraînements" } } }, () => {
    asked += 1;
    return "fr";
  });
  const names = readdirSync(SCRIPTS).filter((name) => name.endsWith(".js"));
  assert.ok(names.length > 25);
  for (const name of names) await import(new URL(name, SCRIPTS).href);
  assert.equal(asked, 0);
  assert.equal(/** @type {any} */ (globalThis).bespokeExtension.name, "Bespoke"); // index.js was among them
  assert.equal(t("runs"), "Entraînements");
  assert.equal(asked, 1); // a text that is read is counted
});
