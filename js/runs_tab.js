// The sidebar's list of runs: each with its curve, its samples and its settings; two of them compared. No side effects:
// index.js registers it.

import { drawCurves, lines } from "./curve_plot.js";
import { el, oncePerFrame, say } from "./dom.js";
import { detail, stateOf } from "./run_detail.js";
import { loss, t } from "./words.js";

const SEARCH_FROM = 8; // runs, below which a search field is in the way
const TYPED_MS = 250; // without a key, before a search is asked for

/** Fill the sidebar's element. Gives the function that takes it away. */
export function fillTab(root, runs) {
  const list = el("div", { class: "bespoke-runs", role: "list", "aria-label": t("runs") });
  const compared = el("section", { class: "bespoke-compare", "aria-label": t("compare"), hidden: true });
  const note = el("p", { class: "bespoke-note", role: "status" });
  const search = el("input", { type: "search", class: "bespoke-search", placeholder: t("search"), "aria-label": t("search"), oninput: () => searchSoon() });
  const again = el("button", { type: "button", class: "bespoke-button", "aria-label": t("refresh"), title: t("refresh"), onclick: () => fill() }, "↻");
  const head = el("header", {}, el("h2", {}, t("runs")), again);
  const more = el("button", { type: "button", class: "bespoke-button", hidden: true, onclick: () => fill(shownPages + 1) }, t("runs.next"));
  root.replaceChildren(el("div", { class: "bespoke-tab" }, head, search, note, compared, list, more));

  const cards = new Map(); // id -> card
  const chosen = []; // ids of at most two runs to compare
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) cards.get(target.dataset.id)?.show();
  });

  let shownPages = 1;
  let filling = 0;

  /** Show the first `pages` pages of the list, as many as before where nothing is said. */
  async function fill(pages = shownPages) {
    const turn = ++filling;
    const shown = [];
    let total = 0;
    let all = 1;
    try {
      for (let page = 0; page < Math.min(pages, all); page++) {
        const found = await runs.list(page, search.value.trim());
        if (turn !== filling) return; // asked for anew meanwhile
        [total, all] = [found.total, found.pages];
        shown.push(...found.runs);
      }
    } catch (error) {
      if (turn !== filling) return;
      note.hidden = false;
      return say(note, t("runs.unread", { why: error.message }));
    }
    shownPages = pages;
    more.hidden = all <= pages;
    if (!search.value) search.hidden = total < SEARCH_FROM;
    say(note, !total ? t(search.value ? "runs.none.found" : "runs.none") : shown.length < total ? t("runs.more", { shown: shown.length, all: total }) : "");
    note.hidden = !note.textContent;
    place(shown);
  }

  function place(shown) {
    const ids = new Set(shown.map((run) => run.id));
    for (const [id, made] of cards) if (!ids.has(id)) forget(id, made);
    shown.forEach((summary, i) => {
      if (!cards.has(summary.id)) {
        const made = card(summary, runs, (on) => choose(summary.id, on));
        made.choose(chosen.includes(summary.id));
        cards.set(summary.id, made);
        seen.observe(made.box);
      }
      const made = cards.get(summary.id);
      made.take(summary);
      if (list.children[i] !== made.box) list.insertBefore(made.box, list.children[i] ?? null);
    });
  }

  function forget(id, made) {
    seen.unobserve(made.box);
    made.box.remove();
    cards.delete(id);
    if (!search.value) choose(id, false); // a search only hides it
  }

  let typed = 0;
  function searchSoon() {
    clearTimeout(typed);
    typed = setTimeout(() => fill(1), TYPED_MS);
  }

  function choose(id, on) {
    const at = chosen.indexOf(id);
    if (at >= 0) chosen.splice(at, 1);
    if (on) chosen.push(id);
    while (chosen.length > 2) cards.get(chosen.shift())?.choose(false);
    compared.hidden = chosen.length < 2;
    if (chosen.length === 2) compare(compared, chosen, runs);
  }

  const draw = oncePerFrame(() => {
    for (const made of cards.values()) made.draw();
  });
  const silence = runs.listen(({ kind, run }) => {
    if (kind === "start" || kind === "end" || kind === "back") fill();
    else if (run) cards.get(run.id)?.draw();
  });
  const sizes = new ResizeObserver(draw);
  sizes.observe(list);
  fill();
  return () => {
    silence();
    clearTimeout(typed);
    seen.disconnect();
    sizes.disconnect();
    root.replaceChildren();
  };
}

/** One run in the list: { box, take(summary), show(), draw(), choose(on) }. */
function card(summary, runs, onChoose) {
  let run = null; // with its curve, once it was in view
  let open = null; // its details, once they were asked for
  const canvas = el("canvas", { class: "bespoke-spark", "aria-hidden": "true" });
  const name = el("span", { class: "bespoke-name" });
  const under = el("span", { class: "bespoke-under" });
  const state = el("span", { class: "bespoke-state" });
  const id = `bespoke-detail-${summary.id}`;
  const main = el(
    "button",
    { type: "button", class: "bespoke-card", "aria-expanded": "false", "aria-controls": id, onclick: toggle },
    el("span", { class: "bespoke-words" }, name, state, under),
    canvas,
  );
  const tick = el("input", { type: "checkbox", title: t("compare.tip"), "aria-label": t("compare.tip"), onchange: () => onChoose(tick.checked) });
  const below = el("div", { id, hidden: true });
  const box = el("div", { role: "listitem", class: "bespoke-item", "data-id": summary.id }, el("div", { class: "bespoke-row" }, tick, main), below);

  function take(next) {
    summary = next;
    const word = stateOf(run, summary);
    box.dataset.state = word;
    say(name, nameOf(summary));
    say(state, t(`state.${word}`));
    const started = new Date(summary.started * 1000);
    const parts = [Number.isNaN(started.getTime()) ? "" : started.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }), t("steps", { steps: run?.step || summary.steps_done })];
    const best = run?.curve.best ?? summary.best;
    if (best) parts.push(t("best.loss", { loss: loss(best[1]) }));
    say(under, parts.filter(Boolean).join(" · "));
  }

  function draw() {
    if (!run) return;
    take(summary);
    drawCurves(canvas, [run.curve], { small: true, goesOn: run.live });
    if (open && !below.hidden) open.draw(run);
  }

  async function show() {
    if (run) return draw();
    try {
      run = await runs.watch(summary.id);
      draw();
    } catch {
      // The summary stands by itself; opening the card says what is wrong.
    }
  }

  async function toggle() {
    const now = below.hidden;
    below.hidden = !now;
    main.setAttribute("aria-expanded", String(now));
    if (!now) return;
    try {
      run ??= await runs.watch(summary.id);
      open ??= detail(run, runs);
      below.replaceChildren(open.box);
      draw();
      await open.files();
    } catch (error) {
      below.replaceChildren(el("p", { class: "bespoke-note" }, error.message));
    }
  }

  return {
    box,
    take,
    show,
    draw,
    choose: (on) => (tick.checked = on),
  };
}

/** What a run is called in the list: the word or trigger that was learned, else the kind and the base. */
export function nameOf(run) {
  const kind = t(`technique.${run.technique}`);
  const what = String(run.settings.name || run.trigger || run.base).replace(/\.(safetensors|ckpt)$/, "");
  return what ? `${kind}: ${what}` : kind;
}

/** Two curves in one picture and what differs in their settings. */
async function compare(box, ids, runs) {
  const canvas = el("canvas", { role: "img" });
  const table = el("table", { class: "bespoke-table" });
  const heads = ids.map((_, i) => el("th", { scope: "col" }));
  box.replaceChildren(el("h3", {}, t("compare")), canvas, table);
  const pair = await Promise.all(ids.map((id) => runs.load(id).catch(() => null)));
  if (pair.some((run) => !run?.record)) return box.replaceChildren(el("p", { class: "bespoke-note" }, t("runs.unread", { why: "" })));
  pair.forEach((run, i) => {
    const swatch = el("i", { class: "bespoke-swatch", style: `background:${lines(i).average}` });
    heads[i].append(swatch, nameOf(run.record));
  });
  table.append(el("thead", {}, el("tr", {}, el("th"), ...heads)));
  const [a, b] = pair.map(({ record, curve }) => ({
    ...record.settings,
    [t("base")]: record.base,
    [t("images")]: record.images,
    [t("curve.average")]: loss(lastOf(curve)),
    ...(curve.best ? { [t("curve.held-out")]: `${loss(curve.best[1])} (${curve.best[0]})` } : {}),
  }));
  const rows = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((name) => a[name] !== b[name]);
  const cell = (value) => el("td", {}, value === undefined ? "–" : String(value));
  table.append(el("tbody", {}, ...rows.map((name) => el("tr", {}, el("th", { scope: "row" }, name), cell(a[name]), cell(b[name])))));
  const draw = () => drawCurves(canvas, pair.map((run) => run.curve));
  draw();
  canvas.setAttribute("aria-label", pair.map((run) => `${nameOf(run.record)}: ${loss(lastOf(run.curve))}`).join("; "));
  new ResizeObserver(draw).observe(canvas);
}

function lastOf(curve) {
  return curve.average[Math.max(0, Math.ceil(curve.last / curve.stride) - 1)];
}
