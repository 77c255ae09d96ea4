// All that the page knows of runs: fed by the socket's events, filled up from the records, told to whoever listens.
// The state is made by `createRuns`; the module itself has no side effects.

import { apiURL, fetchApi, onEvent } from "./comfy.js";
import { Curve, curveOf } from "./curve.js";
import { isRunId, readEvent, readPage, readRecord, text } from "./run_values.js";
import { t } from "./words.js";

const EVENTS = ["start", "step", "validation", "sample", "end"];
const LISTEN_MS = 2000; // a live run that has said nothing for so long is asked after

/**
 * The page's runs.
 * A run is { id, record, curve, samples, state, live, lost, path, step, steps, rate, eta, memory, loss, average }.
 */
export function createRuns() {
  const runs = new Map();
  const listeners = new Set();
  const loading = new Map();
  const pages = new Map(); // of the list, as far as they were asked for since the last change
  let stamp = ""; // of the list that the pages are from
  let queue = Promise.resolve(); // of requests about the list: one at a time for the whole page
  let connected = true;
  let endedAt = 0;

  const tell = (kind, run, more = {}) => listeners.forEach((listener) => listener({ kind, run, ...more }));

  const ask = async (path, options) => {
    const answer = await fetchApi(path, options);
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new Error(typeof said.error === "string" ? said.error.slice(0, 300) : t("runs.status", { status: answer.status }));
    }
    return answer.json();
  };

  /** Do this after all that was asked before; what fails stops nothing behind it. */
  function inTurn(work) {
    const done = queue.then(work);
    queue = done.catch(() => {});
    return done;
  }

  function runOf(id, steps = 1) {
    if (!runs.has(id)) {
      runs.set(id, {
        id, record: null, curve: new Curve(steps), samples: [], state: "running", live: false, lost: false, path: "",
        step: 0, steps, rate: null, eta: null, memory: null, loss: null, average: null, error: "", preflight: "", heard: 0,
      });
    }
    return runs.get(id);
  }

  function takeRecord(record) {
    const run = runOf(record.id);
    run.record = record;
    run.curve = curveOf(record);
    run.samples = record.samples;
    run.step = run.curve.last;
    run.steps = Math.max(record.settings.steps ?? 0, run.step);
    run.path = record.node || run.path;
    run.state = record.state;
    return run;
  }

  // --- What the server says ----------------------------------------------------------------------------------------

  const heard = {
    start(run, event) {
      const goesOn = run.record !== null || run.step > 0;
      Object.assign(run, { state: "running", live: true, lost: false, error: "", preflight: event.text, steps: event.steps ?? run.steps });
      if (!goesOn) run.curve = new Curve(run.steps);
      load(run.id, true).catch(() => {}); // the settings, and the curve as far as an earlier sitting drew it
    },
    step(run, event) {
      if (event.step === null) return;
      Object.assign(run, {
        state: "running", live: true, lost: false, step: event.step, steps: event.steps ?? run.steps, loss: event.loss,
        average: event.loss_ema, rate: event.images_per_second, eta: event.eta_s, memory: event.memory_mb,
      });
      run.curve.steps = Math.max(run.steps, run.step);
      run.curve.add(event.step, event.loss ?? NaN, event.loss_ema ?? NaN);
    },
    validation(run, event) {
      if (event.step !== null && event.loss !== null) run.curve.addHeldOut(event.step, event.loss);
    },
    sample(run, event) {
      if (event.step === null || !event.image || run.samples.some(([, file]) => file === event.image)) return;
      run.samples = [...run.samples, [event.step, event.image]].sort(([a], [b]) => a - b);
    },
    end(run, event) {
      Object.assign(run, { state: event.state ?? "failed", live: false, lost: false, eta: null });
      endedAt = performance.now();
      load(run.id, true).catch(() => {}); // the events left steps out
    },
  };

  for (const kind of EVENTS) {
    onEvent(`bespoke.run.${kind}`, (detail) => {
      const event = readEvent(detail);
      if (!event) return;
      const known = runs.has(event.id);
      const run = runOf(event.id, event.steps ?? 1);
      if (event.node) run.path = event.node;
      run.heard = performance.now();
      heard[kind](run, event);
      if (!known && kind !== "start") load(run.id, true).catch(() => {}); // the page was opened in mid-run
      tell(kind, run);
    });
  }

  // Why a run failed, with the mend, comes as ComfyUI's own event.
  onEvent("execution_error", (detail) => {
    const run = [...runs.values()].reverse().find((one) => one.path && one.path === detail?.node_id && (one.live || one.state === "failed"));
    if (!run || run.error) return;
    Object.assign(run, { error: text(detail.exception_message, 600).trim(), state: "failed", live: false });
    tell("error", run);
  });

  onEvent("reconnecting", () => {
    connected = false;
    for (const run of runs.values()) {
      if (!run.live) continue;
      run.lost = true;
      tell("lost", run);
    }
  });
  onEvent("reconnected", () => {
    connected = true;
    for (const run of runs.values()) if (run.lost || run.live) check(run);
    tell("back", null);
  });

  /** Whether a run that should be running is: the server may have been started anew meanwhile. */
  async function check(run) {
    try {
      const busy = await promptOf(run);
      await load(run.id, true);
      run.lost = false;
      if (run.state === "running") {
        run.live = busy !== null;
        if (!run.live) run.state = "cut off";
      }
      tell("checked", run);
    } catch {
      // Not back after all: the next reconnection asks again.
    }
  }

  /** The id of the prompt that trains this run now, or null: [number, prompt_id, prompt, ...] of the queue. */
  async function promptOf(run) {
    const queue = await ask("/queue");
    for (const [, id, prompt] of queue.queue_running ?? []) {
      const kinds = Object.entries(prompt ?? {}).filter(([, item]) => String(item?.class_type).startsWith("BespokeTrain"));
      if (kinds.some(([path]) => !run.path || path === run.path)) return id;
    }
    return null;
  }

  // --- What the page asks ------------------------------------------------------------------------------------------

  /** The run with its whole record. Steps that came by event after the record was written stay. */
  function load(id, anew = false) {
    if (!isRunId(id)) return Promise.reject(new Error(t("runs.unreadable")));
    if (!anew && runs.get(id)?.record?.losses) return Promise.resolve(runs.get(id));
    if (loading.has(id)) return loading.get(id);
    const work = (async () => {
      const record = readRecord(await ask(`/bespoke/runs/${id}`));
      if (!record || record.id !== id) throw new Error(t("runs.unreadable"));
      const { live, step, steps, curve, state, samples, path } = runOf(id);
      const run = takeRecord(record);
      if (live) {
        Object.assign(run, { live, state, path: path || run.path, step: Math.max(step, run.step), steps: Math.max(steps, run.step) });
        run.curve.steps = Math.max(run.steps, run.curve.steps);
        joinTail(run.curve, curve);
        run.samples = [...new Map([...run.samples, ...samples].map((sample) => [sample[1], sample])).values()];
      }
      tell("record", run);
      return run;
    })().finally(() => loading.delete(id));
    loading.set(id, work);
    return work;
  }

  return {
    ask,
    load,
    connected: () => connected,
    /** The run that goes on now, or null. */
    live: () => [...runs.values()].find((run) => run.live && !run.lost) ?? null,
    endedAt: () => endedAt,
    /** One page of the runs' summaries, newest first: { runs, total, page, pages }. search: words that all must occur. */
    list: (page = 0, search = "") =>
      inTurn(async () => {
        const key = `${page}|${search}`;
        const query = new URLSearchParams({ page, search, ...(pages.has(key) ? { stamp } : {}) });
        const found = readPage(await ask(`/bespoke/runs?${query}`));
        if (!found.unchanged) {
          if (found.stamp !== stamp) pages.clear();
          stamp = found.stamp;
          pages.set(key, found);
        }
        return pages.get(key);
      }),
    /**
     * The run that a trainer node shows: { run: summary or null, exact: it was made by this node }.
     * place: { technique, paths, workflow, request: widget values by name }. still: () => whether it is still asked for.
     */
    match: (place, still) =>
      inTurn(async () => {
        if (!still()) return { run: null, exact: false };
        const body = JSON.stringify(place);
        const found = await ask("/bespoke/runs/match", { method: "POST", headers: { "Content-Type": "application/json" }, body });
        return { run: readRecord(found.run), exact: found.exact === true };
      }),
    /** Look again at a run that the record calls running, where no event of it has come. */
    async watch(id) {
      const run = await load(id);
      if (run.state === "running" && performance.now() - run.heard > LISTEN_MS) await check(run);
      return run;
    },
    finish: (id) => ask(`/bespoke/runs/${encodeURIComponent(id)}/finish`, { method: "POST" }),
    /** Interrupt the prompt that trains this run, and no other. */
    async cancel(run) {
      const prompt = await promptOf(run);
      if (prompt === null) throw new Error(t("go.none"));
      const body = JSON.stringify({ prompt_id: prompt });
      const answer = await fetchApi("/interrupt", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (!answer.ok) throw new Error(t("runs.status", { status: answer.status }));
    },
    sampleUrl: (id, file) => apiURL(`/bespoke/runs/${encodeURIComponent(id)}/samples/${encodeURIComponent(file)}`),
    /** Call `listener({ kind, run })` for all that happens; gives the function that ends it. */
    listen(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** Copy what `newer` knows beyond the last step of `curve`. */
function joinTail(curve, newer) {
  for (let i = 0; i < newer.average.length; i++) {
    const step = Math.min(newer.last, (i + 1) * newer.stride);
    if (step <= curve.last || newer.low[i] > newer.high[i]) continue;
    curve.add(step, newer.low[i], newer.average[i]);
    curve.add(step, newer.high[i], newer.average[i]);
  }
  for (const [step, loss] of newer.heldOut) curve.addHeldOut(step, loss);
}
