// Two to ten runs side by side: their losses in one chart, and what differs between their configurations.

import { follow, get } from "./api.js";
import { Chart } from "./charts.js";
import { h, number, show, stateLabel, table } from "./dom.js";
import { MOST_COMPARED } from "./runs.js";

const POINTS = 1000; // of a run's history
const COLORS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

export async function comparePage(signal, ids) {
  const chosen = [...new Set(ids.split(","))].slice(0, MOST_COMPARED);
  const { data: figures } = await get("/api/v1/figures");
  if (signal.aborted) return;
  const charts = comparedCharts(figures, chosen);
  const body = h("tbody");
  const differences = h("section", { class: "card", "aria-label": "Configuration" }, h("h2", {}, "What differs in their configurations"));
  const heading = show("Compare runs", h("section", { class: "card", "aria-label": "Runs" },
    table("The newest figures, and each run's colour in the charts. Dashed lines are evaluations.",
      [["Run"], ["State"], ["Step", "wide"], ["Loss"], ["Evaluation loss"]], body, "compared")),
    ...charts.map((chart) => h("section", { class: "card" }, h("h2", {}, chart.title), chart.element)), differences);
  heading.focus();
  charts.forEach((chart) => chart.draw());

  function take(id, record) {
    for (const chart of charts) {
      chart.figures.forEach((figure, index) => {
        if (figure.kind === record.kind) chart.add(chosen.indexOf(id) * chart.figures.length + index, record.step, record[figure.name]);
      });
    }
  }
  // One stream for all: a browser keeps only six connections.
  follow("/api/v1/events?metrics=true", signal, (kind, record) => {
    if (kind === "metric" && chosen.includes(record.run_id)) take(record.run_id, record);
  });
  const runs = await Promise.all(chosen.map((id) => get(`/api/v1/runs/${encodeURIComponent(id)}`)));
  if (signal.aborted) return;
  body.replaceChildren(...runs.map((run, index) => h("tr", {},
    h("td", { class: "id" }, h("span", { class: "swatch", style: `background: var(--${COLORS[index]})` }), h("a", { href: `#/runs/${run.id}` }, run.id)),
    h("td", {}, stateLabel(run.status)), h("td", { class: "wide" }, String(run.progress.step)), h("td", {}, number(run.loss, 4)),
    h("td", {}, number(run.eval_loss, 4)))));
  if (runs.every((run) => run.progress.step === 0)) charts.forEach((chart) => chart.explain("None of these runs has done a step."));
  await Promise.all([
    ...chosen.map(async (id) => {
      const { data } = await get(`/api/v1/runs/${encodeURIComponent(id)}/metrics?points=${POINTS}`);
      if (!signal.aborted) data.forEach((record) => take(id, record));
    }),
    Promise.all(chosen.map((id) => get(`/api/v1/runs/${encodeURIComponent(id)}/config`)))
      .then((answers) => differences.append(differenceTable(chosen, answers.map((answer) => flat(answer.config))))),
  ]);
}

/** A chart for each title with a figure that is compared: a line for each of its figures of each run, in the run's colour. */
function comparedCharts(figures, ids) {
  const drawn = figures.filter((figure) => figure.chart && !figure.per_rank && !figure.per_set);
  const titles = new Set(drawn.filter((figure) => figure.chart.compared).map((figure) => figure.chart.title));
  return [...titles].map((title) => {
    const members = drawn.filter((figure) => figure.chart.title === title);
    const names = ids.flatMap((id) => members.map((figure) => (figure.kind === "eval" ? `${id} evaluation` : id)));
    const chart = new Chart(title, members, names);
    chart.lines.forEach((line, index) => Object.assign(line, { color: COLORS[Math.floor(index / members.length)], symbol: "circle",
      dash: members[index % members.length].kind === "eval" ? "dash" : "solid", scored: false }));
    chart.hasLegend = () => false; // the table of runs is one
    return chart;
  });
}

/** A row for each field in which these configurations differ. configs: values by the fields' whole names */
function differenceTable(ids, configs) {
  const fields = [...new Set(configs.flatMap((config) => Object.keys(config)))].sort();
  const differing = fields.filter((field) => configs.some((config) => config[field] !== configs[0][field]));
  if (!differing.length) return h("p", { class: "quiet" }, "Nothing: their configurations are equal.");
  const rows = differing.map((field) => h("tr", {}, h("th", { scope: "row" }, field), ...configs.map((config) => h("td", {}, config[field] ?? "–"))));
  return table(`${differing.length} fields differ; all others are equal.`, [["Field"], ...ids.map((id) => [id])], h("tbody", {}, ...rows), "differences");
}

/** The values of a configuration by their fields' whole names, as texts. */
function flat(value, name = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { [name]: typeof value === "string" ? value : JSON.stringify(value) };
  return Object.assign({}, ...Object.entries(value).map(([key, inner]) => flat(inner, name ? `${name}.${key}` : key)));
}
