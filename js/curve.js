// A run's curve in a fixed amount of memory: steps fall into bins, which get wider as steps come, so that a step costs
// the same at the ten-thousandth as at the first, and so does a drawing. No side effects.

export const BINS = 512;
const EMA = 0.98; // as the server's, for records, which hold the losses alone

/**
 * bins[i] covers the steps (i * stride, (i + 1) * stride]; held-out scores and the best of them stand beside.
 */
export class Curve {
  constructor(steps = 1) {
    this.steps = Math.max(1, steps); // that were asked for
    this.stride = 1;
    this.low = new Float64Array(BINS).fill(Infinity);
    this.high = new Float64Array(BINS).fill(-Infinity);
    this.average = new Float64Array(BINS).fill(NaN);
    this.last = 0; // the last step that is known
    this.heldOut = []; // [step, loss]
    this.best = null; // [step, loss]
  }

  /** The loss of a step (counted from 1) and the moving average after it. What is not finite leaves a gap. */
  add(step, loss, average) {
    if (!(step >= 1)) return;
    while (step > BINS * this.stride) this.#halve();
    const bin = Math.floor((step - 1) / this.stride);
    if (Number.isFinite(loss)) {
      this.low[bin] = Math.min(this.low[bin], loss);
      this.high[bin] = Math.max(this.high[bin], loss);
    }
    if (Number.isFinite(average)) this.average[bin] = average;
    this.last = Math.max(this.last, step);
    this.steps = Math.max(this.steps, step);
  }

  /** The last step that a drawing shows: a bit ahead of a run that goes on, so that its first steps can be seen too. */
  extent(goesOn) {
    const known = Math.max(2, this.last, this.heldOut.length ? this.heldOut[this.heldOut.length - 1][0] : 0);
    return goesOn ? Math.min(Math.max(this.steps, known), Math.max(20, Math.ceil(known * 1.25))) : known;
  }

  addHeldOut(step, loss) {
    if (!Number.isFinite(loss)) return;
    const after = !this.heldOut.length || step > this.heldOut[this.heldOut.length - 1][0]; // as nearly always
    const known = after ? -1 : this.heldOut.findIndex(([at]) => at >= step);
    if (known < 0) this.heldOut.push([step, loss]);
    else if (this.heldOut[known][0] === step) this.heldOut[known][1] = loss;
    else this.heldOut.splice(known, 0, [step, loss]);
    if (!this.best || loss < this.best[1]) this.best = [step, loss];
  }

  /** [lowest, highest] of what is drawn: the averages and held-out scores whole, of the single losses the middle. */
  range() {
    const lines = [...this.average.filter(Number.isFinite)].concat(this.heldOut.map(([, loss]) => loss));
    const singles = [...this.low, ...this.high].filter(Number.isFinite).sort((a, b) => a - b);
    if (singles.length) lines.push(singles[Math.floor(singles.length * 0.02)], singles[Math.ceil(singles.length * 0.9) - 1]);
    if (!lines.length) return null;
    const [low, high] = lines.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    return high > low ? [low, high] : [low - Math.max(1e-6, Math.abs(low) / 10), high + Math.max(1e-6, Math.abs(high) / 10)];
  }

  #halve() {
    for (let i = 0; i < BINS / 2; i++) {
      this.low[i] = Math.min(this.low[2 * i], this.low[2 * i + 1]);
      this.high[i] = Math.max(this.high[2 * i], this.high[2 * i + 1]);
      const later = this.average[2 * i + 1];
      this.average[i] = Number.isFinite(later) ? later : this.average[2 * i];
    }
    this.low.fill(Infinity, BINS / 2);
    this.high.fill(-Infinity, BINS / 2);
    this.average.fill(NaN, BINS / 2);
    this.stride *= 2;
  }
}

/** The curve of a record as `readRecord` gives it, with the server's moving average. */
export function curveOf(record) {
  const curve = new Curve(Number(record.settings.steps) || record.losses?.length || 1);
  let average = null;
  let count = 0;
  (record.losses ?? []).forEach((loss, i) => {
    if (Number.isFinite(loss)) {
      count++;
      const keep = Math.min(EMA, (count - 1) / count);
      average = average === null ? loss : keep * average + (1 - keep) * loss;
    }
    curve.add(i + 1, loss, average ?? NaN);
  });
  for (const [step, loss] of record.held_out) curve.addHeldOut(step, loss);
  return curve;
}
