// What charts compute from records: where a step stands on the axis, smoothed values, and bands of many ranks.

export const MOST_RANKS = 8; // a line each; of more than these a chart shows the lowest, the median and the highest
export const BAND = { min: "lowest rank", max: "highest rank", median: "median of ranks" };
const MOST_POINTS = 2000;

/** How many tokens, and how many seconds, a run had done at each of its steps. */
export class Positions {
  constructor() {
    this.known = { tokens: new Map(), time: new Map() };
    this.newest = null;
  }

  /** Records of thinned histories leave steps out: their tokens are taken as those of the next one that is there. */
  hear({ kind, step, tokens, time }) {
    if (kind !== "step" || typeof tokens !== "number") return;
    const before = this.newest !== null && this.newest < step ? this.newest : this.below(step);
    const done = this.known.tokens.get(before) ?? 0;
    this.known.tokens.set(step, done + tokens * (step - (before ?? 0)));
    if (typeof time === "number") {
      this.begin ??= time;
      this.known.time.set(step, Math.max(time - this.begin, this.known.time.get(before) ?? 0));
    }
    this.newest = Math.max(this.newest ?? step, step);
    this.sorted = null;
  }

  below(step) {
    const lower = [...this.known.tokens.keys()].filter((one) => one < step);
    return lower.length ? Math.max(...lower) : null;
  }

  /** Where a step stands on an axis of `tokens` or `time`, between its neighbours; null where no step is known. */
  at(axis, step) {
    const known = this.known[axis];
    if (known.has(step)) return known.get(step);
    this.sorted ??= {};
    const steps = (this.sorted[axis] ??= [...known.keys()].sort((a, b) => a - b));
    if (!steps.length) return null;
    const next = steps.findIndex((one) => one > step);
    if (next < 0) return known.get(steps.at(-1));
    const [low, high] = [next ? steps[next - 1] : 0, steps[next]];
    const from = next ? known.get(low) : 0;
    return from + ((known.get(high) - from) * (step - low)) / (high - low);
  }
}

/** An exponential mean of values so far, which starts at the first one. weight: 0, nothing changes, to below 1 */
export function smoothed(values, weight) {
  let mean = 0, known = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return mean / known;
  });
}

/** What a chart draws of the values of all ranks, as [name, value]: up to MOST_RANKS each of them, else a band.
 * A history that the server thinned holds the band already. */
export function ofRanks(value) {
  if (!Array.isArray(value)) return Object.entries(BAND).filter(([key]) => key in value).map(([key, name]) => [name, value[key]]);
  if (value.length <= MOST_RANKS) return value.map((one, rank) => [`rank ${rank}`, one]);
  const told = value.filter((one) => one !== null).sort((a, b) => a - b);
  const middle = (told[Math.floor((told.length - 1) / 2)] + told[Math.ceil((told.length - 1) / 2)]) / 2;
  return told.length ? [[BAND.min, told[0]], [BAND.max, told.at(-1)], [BAND.median, middle]] : [];
}

/** At most `most` of the points, spread evenly, the newest among them. */
export function thinned(points, most = MOST_POINTS) {
  const every = Math.ceil(points.length / most);
  return every <= 1 ? points : points.filter((_, index) => index % every === 0 || index === points.length - 1);
}
