// What a person must know of a run that ended, and the lists that it changed. No side effects: index.js starts it.

import { onEvent, refreshLists, toast } from "./comfy.js";
import { t, time } from "./words.js";

const LIFE_MS = 8000;
const REFRESH_MS = 400; // files that come one after the other make one refresh

/**
 * Say when a run ends, and refresh the lists of LoRAs and embeddings once there is a new file.
 * wish: (name) => a setting of ours, see settings.js.
 */
export function tellOfRuns(runs, wish) {
  let due = 0;
  const refreshSoon = () => {
    clearTimeout(due);
    due = setTimeout(refreshLists, REFRESH_MS);
  };
  runs.listen(({ kind, run }) => {
    if (kind === "end") refreshSoon(); // files saved on the way
    if (kind === "end" && wish("Toasts") && (run.state === "finished" || run.state === "kept")) {
      const detail = t(`toast.${run.state}`, { steps: run.step.toLocaleString("en"), time: time(run.record?.seconds ?? 0) });
      toast({ severity: "success", summary: t(`state.${run.state}`), detail, life: LIFE_MS });
    }
    if (kind === "error") toast({ severity: "error", summary: t("state.failed"), detail: run.error, life: 3 * LIFE_MS });
  });
  onEvent("executed", (detail) => {
    // Both savers say "saved as NAME"; a node's type is not in the event.
    if (String(detail?.output?.text?.[0] ?? "").startsWith("saved as ")) refreshSoon();
  });
}
