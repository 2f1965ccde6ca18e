// Line charts by plotly, in the page's own colours, redrawn at most twice a second.

const REDRAW_MILLISECONDS = 500;
const MOST_POINTS = 2000;
const DASHES = ["solid", "dash", "dot", "dashdot"];
const [LETTER_PIXELS, MARK_PIXELS, ROW_PIXELS] = [7, 45, 19]; // of an entry of the legend
const WHY_CHARACTERS = 44; // in a line of the reason why a chart is empty
const drawn = new Set();
export const COLORS = ["one", "two", "three", "four"];
const SYMBOLS = ["circle", "diamond", "square", "cross"];
const CHART_UNITS = { bytes: ["GiB", 2 ** 30] }; // what a chart is drawn in, and how much of the record's unit that is
const MOST_IN_LEGEND = COLORS.length * DASHES.length; // more lines than that look alike; pointing at one names it

/** A chart of figures over steps, which share a unit; `figures` are as the API describes them, `lines` are names.
 * add(index, step, value) puts a point on a line, and addSeveral(step, values) one on the line of each rank or set, by
 * its name, which is made when it is first heard of. */
export class Chart {
  constructor(title, figures, lines) {
    const [{ chart, unit }] = figures;
    this.figures = figures;
    this.rangemode = chart.from_zero ? "tozero" : "normal";
    this.title = title;
    [this.unit, this.scale] = CHART_UNITS[unit] ?? [unit === "1" ? chart.title.toLowerCase() : unit, 1];
    this.why = "no points yet";
    this.lines = lines.map((name, index) => ({ name, color: COLORS[index], symbol: SYMBOLS[index], points: new Map() }));
    this.element = document.createElement("div");
    this.element.className = "chart";
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", `${title}: ${this.why}`);
    drawn.add(this);
  }

  /** Put what a record has of this chart's figures: a line each. */
  take(record) {
    let index = 0; // of a line that a figure has to itself: they come before those of ranks and sets
    for (const figure of this.figures) {
      const value = figure.kind === record.kind ? record[figure.name] : undefined;
      if (figure.per_rank) this.addSeveral(record.step, (value ?? []).map((one, rank) => [`rank ${rank}`, one]));
      else if (figure.per_set) this.addSeveral(record.step, Object.entries(value ?? {}));
      else this.add(index++, record.step, value);
    }
  }

  add(index, step, value) {
    if (value === null || value === undefined) return;
    this.lines[index].points.set(step, value / this.scale); // a step trained again after a restart replaces its point
    this.timer ??= setTimeout(() => this.draw(), REDRAW_MILLISECONDS);
  }

  addSeveral(step, values) {
    for (const [name, value] of values) {
      let index = this.lines.findIndex((line) => line.several && line.name === name);
      if (index < 0) {
        index = this.lines.length;
        const color = COLORS[index % COLORS.length];
        const dash = DASHES[Math.floor(index / COLORS.length) % DASHES.length];
        this.lines.push({ name, color, dash, several: true, points: new Map() });
      }
      this.add(index, step, value);
    }
  }

  /** Say why there are no points, for as long as there are none. */
  explain(why) {
    if (why === this.why) return;
    this.why = why;
    if (!this.hasPoints()) this.draw();
  }

  hasPoints() {
    return this.lines.some((line) => line.points.size > 0);
  }

  hasLegend() {
    return this.hasPoints() && this.lines.length > 1 && this.lines.length <= MOST_IN_LEGEND;
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!this.element.isConnected) return;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const traces = this.lines.map((line) => {
      const points = thinned([...line.points].sort((a, b) => a[0] - b[0]));
      return {
        x: points.map((point) => point[0]), y: points.map((point) => point[1]), name: line.name,
        mode: points.length < 60 ? "lines+markers" : "lines", line: { color: color(line.color), width: 2, dash: line.dash ?? "solid" },
        marker: { size: 4, symbol: line.symbol ?? "circle" },
      };
    });
    const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true, exponentformat: "e" };
    this.element.style.height = heightFor(this.hasLegend() ? this.lines : [], this.element.clientWidth);
    Plotly.react(this.element, traces, {
      height: this.element.clientHeight, margin: { l: 50, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("text"), size: 12, family: "system-ui, sans-serif" }, showlegend: this.hasLegend(),
      // Its lower edge stands on the plot's upper one, and the margin grows with it: no line is ever below it.
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      annotations: this.hasPoints() ? [] : [reason(this.why, color("quiet"))],
      hovermode: "x unified", hoverlabel: { bgcolor: color("card") },
      xaxis: { ...axis, visible: this.hasPoints(), title: { text: "step" } },
      yaxis: { ...axis, visible: this.hasPoints(), rangemode: this.rangemode, title: { text: this.unit } },
    }, { displayModeBar: false, responsive: true });
    document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // plotly measures texts in it
    this.element.setAttribute("aria-label", `${this.title}: ${this.hasPoints() ? this.lines.map(spoken).join("; ") : this.why}`);
  }
}

/** One chart for each title among the figures, in their order. */
export function chartsOf(figures) {
  const drawnOnes = figures.filter((figure) => figure.chart);
  return [...new Set(drawnOnes.map((figure) => figure.chart.title))].map((title) => {
    const members = drawnOnes.filter((figure) => figure.chart.title === title);
    const alone = members.filter((figure) => !figure.per_rank && !figure.per_set);
    return new Chart(title, members, alone.map((figure) => figure.chart.line));
  });
}

/** Forget the charts of the page before. */
export function clearCharts() {
  for (const chart of drawn) {
    clearTimeout(chart.timer);
    Plotly.purge(chart.element);
  }
  drawn.clear();
}

/** A chart's height with room for the legend's rows, of which one is in the style sheet's height; empty: that height. */
function heightFor(lines, width) {
  const entry = Math.max(0, ...lines.map((line) => line.name.length)) * LETTER_PIXELS + MARK_PIXELS;
  const rows = Math.ceil(lines.length / Math.max(1, Math.floor(width / entry)));
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
  return `${line.name}: ${steps.length} points, newest ${Number(line.points.get(last)).toPrecision(4)} at step ${last}`;
}

function thinned(points) {
  const every = Math.ceil(points.length / MOST_POINTS);
  return every === 1 ? points : points.filter((_, index) => index % every === 0 || index === points.length - 1);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((chart) => chart.draw()));
