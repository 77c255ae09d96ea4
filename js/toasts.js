// @ts-check
// Messages about runs that ended, and the refresh of the file lists that runs change. No side effects: index.js starts it.

import { onEvent, refreshLists, toast } from "./comfy.js";
import { t, time } from "./words.js";

const LIFE_MS = 8000; // of a message in the corner
const REFRESH_MS = 400; // several files saved within this time cause one refresh

/**
 * Show a message when a run ends, and refresh the lists of LoRAs and embeddings when there is a new file.
 * @param {import("./runs.js").Runs} runs
 * @param {import("./settings.js").GetSetting} getSetting
 */
export function notifyOfRuns(runs, getSetting) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const refreshSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(refreshLists, REFRESH_MS);
  };
  runs.listen(({ kind, run }) => {
    if (kind === "end") refreshSoon(); // files saved during the run
    if (!run) return;
    if (kind === "end" && getSetting("Toasts") && (run.state === "finished" || run.state === "kept")) {
      const detail = t(`toast.${run.state}`, { steps: run.step.toLocaleString("en"), time: time(run.record?.seconds ?? 0) });
      toast({ severity: "success", summary: t(`state.${run.state}`), detail, life: LIFE_MS });
    }
    if (kind === "error") toast({ severity: "error", summary: t("state.failed"), detail: run.error, life: 3 * LIFE_MS });
  });
  onEvent("executed", (detail) => {
    // Both nodes that save a file report "saved as NAME"; the event does not name the node's class.
    if (String(detail?.output?.text?.[0] ?? "").startsWith("saved as ")) refreshSoon();
  });
}
