// Line charts by plotly, in the page's own colours, redrawn at most twice a second.

import { chartTable } from "./chart_table.js";
import { axisUnit, changeView, chartControls, forgetView, onViewChange, view } from "./chart_view.js";
import { BAND, ofRanks, Positions, smoothed, thinned } from "./series.js";

const REDRAW_MILLISECONDS = 500;
const HISTORY_MILLISECONDS = 3000; // of a new chart, whose history comes at once and is drawn sooner
const SOON_MILLISECONDS = 80;
const EMPTY_MILLISECONDS = 400; // before an empty chart says why: points may be on their way
const DASHES = ["solid", "dash", "dot", "dashdot"];
const [LETTER_PIXELS, MARK_PIXELS, ROW_PIXELS] = [7, 45, 19]; // of an entry of the legend
const WHY_CHARACTERS = 44; // in a line of the reason why a chart is empty
const drawn = new Set();
export const COLORS = ["one", "two", "three", "four"];
const SYMBOLS = ["circle", "diamond", "square", "cross"];
const CHART_UNITS = { bytes: ["GiB", 2 ** 30] }; // what a chart is drawn in, and how much of the record's unit that is
const MOST_IN_LEGEND = COLORS.length * DASHES.length; // more lines than that look alike; pointing at one names it
const BY_TOUCH = matchMedia("(pointer: coarse)"); // there a finger that moves across a chart scrolls the page

/** A chart of figures over steps, which share a unit; `figures` are as the API describes them, `lines` are names.
 * add(index, step, value) puts a point on a line, and addSeveral(step, values) one on the line of each rank or set, by
 * its name, which is made when it is first heard of. `positions` tell where steps stand on the other axes: of the
 * whole chart, or of a line that has its own. `table` is the same as text. */
export class Chart {
  constructor(title, figures, lines) {
    const [{ chart, unit }] = figures;
    this.figures = figures;
    this.rangemode = chart.from_zero ? "tozero" : "normal";
    this.stacked = Boolean(chart.stacked);
    this.title = title;
    [this.unit, this.scale] = CHART_UNITS[unit] ?? [unit === "1" ? chart.title.toLowerCase() : unit, 1];
    this.why = "no points yet";
    this.born = performance.now();
    this.positions = new Positions();
    const alone = figures.filter((figure) => !figure.per_rank && !figure.per_set);
    this.lines = lines.map((name, index) => ({ name, color: COLORS[index], symbol: SYMBOLS[index], points: new Map(),
      scored: (alone[index] ?? figures[0]).kind === "eval" }));
    this.several = new Map();
    this.element = document.createElement("div");
    this.element.className = "chart";
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", `${title}: ${this.why}`);
    this.table = chartTable(this);
    drawn.add(this);
  }

  /** Put what a record has of this chart's figures: a line each. */
  take(record) {
    let index = 0; // of a line that a figure has to itself: they come before those of ranks and sets
    for (const figure of this.figures) {
      const value = figure.kind === record.kind ? record[figure.name] : undefined;
      if (figure.per_rank) this.addSeveral(record.step, value ? ofRanks(value) : []);
      else if (figure.per_set) this.addSeveral(record.step, Object.entries(value ?? {}), { scored: true });
      else this.add(index++, record.step, value);
    }
  }

  add(index, step, value) {
    if (value === null || value === undefined) return;
    this.lines[index].points.set(step, value / this.scale); // a step trained again after a restart replaces its point
    this.drawSoon();
  }

  addSeveral(step, values, facts = {}) {
    for (const [name, value] of values) {
      if (!this.several.has(name)) {
        const index = this.lines.length;
        const color = COLORS[index % COLORS.length];
        const dash = DASHES[Math.floor(index / COLORS.length) % DASHES.length];
        this.several.set(name, index);
        this.lines.push({ name, color, dash, points: new Map(), ...bandStyle(name), ...facts });
      }
      this.add(this.several.get(name), step, value);
    }
  }

  /** Say why there are no points, for as long as there are none. */
  explain(why) {
    if (why === this.why) return;
    this.why = why;
    if (!this.hasPoints()) this.emptyTimer ??= setTimeout(() => this.draw(), EMPTY_MILLISECONDS);
  }

  drawSoon() {
    if (this.timer) return;
    const young = performance.now() - this.born < HISTORY_MILLISECONDS;
    this.timer = setTimeout(() => this.draw(), young ? SOON_MILLISECONDS : REDRAW_MILLISECONDS);
    this.stopEmptyTimer();
  }

  stopEmptyTimer() {
    clearTimeout(this.emptyTimer);
    this.emptyTimer = null;
  }

  hasPoints() {
    return this.lines.some((line) => line.points.size > 0);
  }

  hasLegend() {
    return this.hasPoints() && this.lines.length > 1 && this.lines.length <= MOST_IN_LEGEND;
  }

  namesInLegend() {
    const best = this.hasLegend() && this.best();
    return this.hasLegend() ? [...this.lines.map((line) => line.name), ...(best ? [bestName(best)] : [])] : [];
  }

  /** The longest time of its lines, in seconds. */
  span() {
    return Math.max(0, ...this.lines.map((line) => [...(line.positions ?? this.positions).known.time.values()].at(-1) ?? 0));
  }

  /** A line's points on the axis of the view: [x, value, step], by step, without those whose place is not known. */
  pointsOf(line) {
    const places = line.positions ?? this.positions;
    const x = view.axis === "step" ? (step) => step : (step) => places.at(view.axis, step);
    const points = thinned([...line.points].sort((a, b) => a[0] - b[0]));
    return points.map(([step, value]) => [x(step), value, step]).filter(([place]) => place !== null);
  }

  /** The evaluation with the lowest loss: [x, value, step]. */
  best() {
    const line = this.lines.find((one) => one.scored && one.points.size);
    return line ? this.pointsOf(line).reduce((best, point) => (point[1] < best[1] ? point : best)) : null;
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = null;
    this.stopEmptyTimer();
    if (!this.element.isConnected) return;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const unit = axisUnit(this.span());
    this.element.style.height = heightFor(this.namesInLegend(), this.element.clientWidth);
    Plotly.react(this.element, this.traces(color, unit), this.layout(color, unit), { displayModeBar: false, responsive: true, doubleClick: false });
    if (!this.listens) this.listen();
    document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // plotly measures texts in it
    this.element.setAttribute("aria-label", `${this.title}: ${this.hasPoints() ? this.spoken() : this.why}`);
    this.table.fill();
  }

  /** Plotly's traces: each line; then, more faintly, what was smoothed; then the mark of the best evaluation. */
  traces(color, unit) {
    const faint = [];
    const traces = this.lines.map((line) => {
      const points = this.pointsOf(line);
      const x = points.map((point) => point[0] / unit.one), values = points.map((point) => point[1]);
      const smooth = view.smoothing > 0 && !line.scored;
      const look = { x, name: line.name, mode: "lines", line: { color: color(line.color), width: line.width ?? 2, dash: line.dash ?? "solid" } };
      if (smooth && !this.stacked && !line.band) faint.push({ ...look, y: values, opacity: 0.3, showlegend: false, hoverinfo: "skip", line: { ...look.line, width: 1 } });
      return { ...look, y: smooth ? smoothed(values, view.smoothing) : values, mode: points.length < 60 && !line.band ? "lines+markers" : "lines",
        marker: { size: 4, symbol: line.symbol ?? "circle" }, ...(this.stacked ? { stackgroup: "sum" } : {}),
        ...(line.fill ? { fill: line.fill, fillcolor: `${color(line.color)}33` } : {}) };
    });
    const best = this.best();
    const mark = best && { x: [best[0] / unit.one], y: [best[1]], mode: "markers", name: bestName(best),
      marker: { symbol: "star", size: 13, color: color("good"), line: { color: color("card"), width: 1 } } };
    return [...traces, ...faint, ...(mark ? [mark] : [])];
  }

  layout(color, unit) {
    const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true, exponentformat: "e" };
    const range = view.range && [view.range[0] / unit.one, view.range[1] === null ? null : view.range[1] / unit.one];
    const log = view.log && !this.stacked;
    return {
      height: this.element.clientHeight, margin: { l: 50, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("text"), size: 12, family: "system-ui, sans-serif" }, showlegend: this.hasLegend(),
      // Its lower edge stands on the plot's upper one, and the margin grows with it: no line is ever below it.
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      annotations: this.hasPoints() ? [] : [reason(this.why, color("quiet"))],
      hovermode: "x unified", hoverlabel: { bgcolor: color("card") }, dragmode: BY_TOUCH.matches ? false : "zoom",
      xaxis: { ...axis, visible: this.hasPoints(), title: { text: unit.title }, exponentformat: "SI",
        ...(range ? { range, autorange: range[1] === null ? "max" : false } : { autorange: true }) },
      yaxis: { ...axis, visible: this.hasPoints(), rangemode: this.rangemode, title: { text: this.unit }, type: log ? "log" : "linear", autorange: true, fixedrange: true },
    };
  }

  /** A part that is chosen on one chart is shown on all. */
  listen() {
    this.listens = true;
    this.element.on("plotly_relayout", (change) => {
      const ends = [change["xaxis.range[0]"], change["xaxis.range[1]"]].map((end) => end * axisUnit(this.span()).one);
      if (!ends.some(Number.isNaN)) setTimeout(() => changeView({ range: [Math.max(0, ends[0]), ends[1]] }));
    });
    this.element.on("plotly_doubleclick", () => setTimeout(() => changeView({ range: null })));
  }

  spoken() {
    const best = this.best();
    return [...this.lines.map(spoken), ...(best ? [bestName(best)] : [])].join("; ");
  }
}

/** One chart for each title among the figures, in their order. They share the places of steps. */
export function chartsOf(figures) {
  const drawnOnes = figures.filter((figure) => figure.chart);
  const positions = new Positions();
  return [...new Set(drawnOnes.map((figure) => figure.chart.title))].map((title) => {
    const members = drawnOnes.filter((figure) => figure.chart.title === title);
    const alone = members.filter((figure) => !figure.per_rank && !figure.per_set);
    return Object.assign(new Chart(title, members, alone.map((figure) => figure.chart.line)), { positions });
  });
}

/** The controls of a page's charts: smoothing, axes, and the part that all of them show. */
export function controlsOf(charts) {
  const controls = chartControls(() => axisUnit(Math.max(0, ...charts.map((chart) => chart.span()))));
  onViewChange(() => charts.forEach((chart) => chart.draw()));
  return controls;
}

/** Forget the charts of the page before. */
export function clearCharts() {
  for (const chart of drawn) {
    clearTimeout(chart.timer);
    chart.stopEmptyTimer();
    Plotly.purge(chart.element);
  }
  drawn.clear();
  forgetView();
}

/** How a line of a band looks: the lowest first, then the highest with what lies between them filled. */
function bandStyle(name) {
  if (name === BAND.median) return { color: COLORS[0], dash: "solid", band: true };
  if (name === BAND.min || name === BAND.max)
    return { color: COLORS[0], dash: name === BAND.min ? "dot" : "dash", width: 1, band: true, fill: name === BAND.max ? "tonexty" : null };
  return {};
}

/** A chart's height with room for the legend's rows, of which one is in the style sheet's height; empty: that height. */
function heightFor(names, width) {
  const entry = Math.max(0, ...names.map((name) => name.length)) * LETTER_PIXELS + MARK_PIXELS;
  const rows = Math.ceil(names.length / Math.max(1, Math.floor(width / entry)));
  return rows > 1 ? `calc(var(--chart) + ${(rows - 1) * ROW_PIXELS}px)` : "";
}

/** Plotly's form of a sentence in the middle of an empty chart. */
function reason(why, color) {
  const lines = [""];
  for (const word of why.split(" ")) {
    const last = lines.length - 1;
    if (lines[last] && lines[last].length + word.length >= WHY_CHARACTERS) lines.push(word);
    else lines[last] = `${lines[last]} ${word}`.trim();
  }
  const text = lines.map((line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;")).join("<br>");
  return { text, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5, font: { color, size: 13 } };
}

function spoken(line) {
  const steps = [...line.points.keys()];
  if (!steps.length) return `${line.name}: no points yet`;
  const last = Math.max(...steps.slice(-5));
  return `${line.name}: ${steps.length} points, newest ${digits(line.points.get(last))} at step ${last}`;
}

function bestName([, value, step]) {
  return `best evaluation: ${digits(value)} at step ${step}`;
}

function digits(value) {
  return Number(value).toPrecision(4);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((chart) => chart.draw()));
