// One run opened in the list: its curve, its samples, its settings, and what can be done with it. No side effects.

import { drawCurves } from "./curve_plot.js";
import { el, enlarge, say } from "./dom.js";
import { addLora, addWord, openGraph } from "./insert_nodes.js";
import { t, time } from "./words.js";

const SHOWN = ["base", "images", "trigger", "resolution", "prediction", "architecture", "trained"];

/** The state's word, for a run with its record or for a summary alone. */
export function stateOf(run, summary) {
  if (run?.lost) return "lost";
  return run?.state ?? summary.state;
}

/** A run's details: { box, draw(run), files() }. */
export function detail(run, runs) {
  const canvas = el("canvas", { role: "img", "aria-label": t("training") });
  const strip = el("div", { class: "bespoke-strip", role: "list", "aria-label": t("samples"), tabindex: "0" });
  const buttons = el("div", { class: "bespoke-buttons" });
  const settings = el("dl", { class: "bespoke-settings" });
  const error = el("p", { class: "bespoke-note" });
  const box = el("section", { class: "bespoke-detail" }, canvas, strip, buttons, error, el("h3", {}, t("settings")), settings);
  let drawn = null;

  const button = (key, act, values) =>
    el("button", { type: "button", class: "bespoke-button", title: t(`${key}.tip`), onclick: () => attempt(act) }, t(key, values));

  async function attempt(act) {
    try {
      say(error, "");
      await act();
    } catch (problem) {
      say(error, problem.message);
    }
  }

  const graph = button("open.graph", async () => openGraph(await runs.ask(`/bespoke/runs/${run.id}/graph`), run.record.technique));
  buttons.append(graph);

  function draw(now) {
    say(error, now.error || "");
    if (!canvas.clientWidth) return;
    drawCurves(canvas, [now.curve], { goesOn: now.live });
    if (drawn === now.samples) return;
    drawn = now.samples;
    strip.hidden = !drawn.length;
    strip.replaceChildren(
      ...drawn.map(([step, file]) => {
        const [src, caption] = [runs.sampleUrl(run.id, file), t("sample.at", { step })];
        const picture = el("img", { src, alt: caption, loading: "lazy" });
        const open = el("button", { type: "button", "aria-label": caption, onclick: () => enlarge(src, caption, t("close")) }, picture, el("span", {}, String(step)));
        return el("div", { role: "listitem" }, open);
      }),
    );
  }

  for (const [name, value] of rows(run.record)) settings.append(el("dt", {}, name), el("dd", {}, value));

  return {
    box,
    draw,
    /** Ask which files the run made and offer to put the newest of each kind into the graph. */
    async files() {
      const found = await runs.ask(`/bespoke/runs/${run.id}/files`);
      const named = (list) => (Array.isArray(list) ? list : []).filter((name) => typeof name === "string").sort(byPlace);
      const [loras, words] = [named(found.loras), named(found.embeddings)];
      buttons.replaceChildren(graph);
      const last = (list) => list[list.length - 1];
      if (loras.length) buttons.append(button("add.lora", () => addLora(last(loras))));
      if (words.length) buttons.append(button("add.word", () => addWord(last(words))));
      if (loras.length + words.length) settings.append(el("dt", {}, t("files")), el("dd", {}, [...loras, ...words].join("\n")));
      this.files = async () => {};
    },
  };
}

/** Files saved on the way come before the ones that were saved at the end. */
function byPlace(a, b) {
  const onTheWay = (name) => (name.startsWith("bespoke/runs/") || name.startsWith("bespoke\\runs\\") ? 0 : 1);
  return onTheWay(a) - onTheWay(b) || a.localeCompare(b, "en", { numeric: true });
}

function rows(record) {
  const out = SHOWN.filter((name) => record[name]).map((name) => [t(name), typeof record[name] === "number" ? record[name].toLocaleString("en") : record[name]]);
  if (record.seconds) out.push([t("duration"), time(record.seconds)]);
  for (const [name, value] of Object.entries(record.settings)) if (value !== "") out.push([name, String(value)]);
  return out;
}
