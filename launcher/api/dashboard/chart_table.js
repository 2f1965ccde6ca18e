// A chart as text: a table of some of its points, made only while it is open.

import { view } from "./chart_view.js";
import { h, number, replace } from "./dom.js";
import { thinned } from "./series.js";

const MOST_ROWS = 25;
const MOST_COLUMNS = 8; // lines of ranks; the list of a chart with more is read better in the files of the run

/** A box that opens to the chart's points in the part that is shown; fill() brings it up to date. */
export function chartTable(chart) {
  const body = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${chart.title}, as a table` });
  const box = h("details", { class: "as-table", ontoggle: () => box.fill() }, h("summary", {}, "As a table"), body);
  box.fill = () => box.open && replace(body, tableOf(chart));
  return box;
}

function tableOf(chart) {
  const lines = chart.lines.filter((line) => line.points.size).slice(0, MOST_COLUMNS);
  const [from, to] = view.range ?? [null, null];
  const shown = lines.flatMap((line) => chart.pointsOf(line)).filter(([x]) => x >= (from ?? x) && x <= (to ?? x));
  const steps = thinned([...new Set(shown.map((point) => point[2]))].sort((a, b) => a - b), MOST_ROWS);
  if (!steps.length) return h("p", { class: "quiet" }, chart.hasPoints() ? "No points in this part." : chart.why);
  const best = chart.best();
  const row = (step) => h("tr", {}, h("th", { scope: "row" }, number(step)),
    ...lines.map((line) => h("td", {}, number(line.points.get(step), 5), best && line.scored && step === best[2] ? h("small", {}, " best") : null)));
  const left = chart.lines.filter((line) => line.points.size).length - lines.length;
  return h("table", {}, h("caption", {}, `${chart.unit}; ${steps.length} of ${new Set(shown.map((point) => point[2])).size} points${left > 0 ? `; ${left} more lines are not listed` : ""}`),
    h("thead", {}, h("tr", {}, ...["Step", ...lines.map((line) => line.name)].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...steps.map(row)));
}
