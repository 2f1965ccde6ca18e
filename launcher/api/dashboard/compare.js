// Two to ten runs side by side: their losses, each kind in one chart, and what differs between their configurations.

import { follow, get } from "./api.js";
import { Chart } from "./charts.js";
import { h, number, show, stateLabel, table } from "./dom.js";
import { MOST_COMPARED } from "./runs.js";

const POINTS = 1000; // of a run's history

export async function comparePage(signal, ids) {
  const chosen = [...new Set(ids.split(","))].slice(0, MOST_COMPARED);
  const { data: figures } = await get("/api/v1/figures");
  if (signal.aborted) return;
  const charts = figures.filter((figure) => figure.chart?.compared)
    .map((figure) => new Chart(`${figure.chart.title} (${figure.chart.line})`, [figure], []));
  const body = h("tbody");
  const differences = h("section", { class: "card", "aria-label": "Configuration" }, h("h2", {}, "What differs in their configurations"));
  const heading = show("Compare runs",
    ...charts.map((chart) => h("section", { class: "card" }, h("h2", {}, chart.title), chart.element)),
    h("section", { class: "card" }, h("h2", {}, "Now"),
      table("The newest figures", [["Run"], ["State"], ["Step"], ["Loss"], ["Evaluation loss"]], body)), differences);
  heading.focus();
  // A line for each run from the beginning, so that a run looks the same in all charts.
  charts.forEach((chart) => { chart.addSeveral(0, chosen.map((id) => [id, null])); chart.draw(); });

  function take(id, record) {
    for (const chart of charts) {
      const [figure] = chart.figures;
      if (figure.kind === record.kind) chart.addSeveral(record.step, [[id, record[figure.name]]]);
    }
  }
  // One stream for all: a browser keeps only six connections.
  follow("/api/v1/events?metrics=true", signal, (kind, record) => {
    if (kind === "metric" && chosen.includes(record.run_id)) take(record.run_id, record);
  });
  const runs = await Promise.all(chosen.map((id) => get(`/api/v1/runs/${encodeURIComponent(id)}`)));
  if (signal.aborted) return;
  body.replaceChildren(...runs.map((run) => h("tr", {}, h("td", {}, h("a", { href: `#/runs/${run.id}` }, run.id)),
    h("td", {}, stateLabel(run.status)), h("td", {}, String(run.progress.step)), h("td", {}, number(run.loss, 4)),
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
