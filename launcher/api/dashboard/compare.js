// Two to four runs on one chart.

import { follow, get } from "./api.js";
import { Chart, COLORS } from "./charts.js";
import { h, number, show, stateLabel, table } from "./dom.js";

export async function comparePage(signal, ids) {
  const chosen = ids.split(",").slice(0, COLORS.length);
  const { data: figures } = await get("/api/v1/figures");
  if (signal.aborted) return;
  const charts = figures.filter((figure) => figure.chart?.compared)
    .map((figure) => new Chart(`${figure.chart.title} (${figure.chart.line})`, [figure], chosen));
  const body = h("tbody");
  const heading = show("Compare runs",
    ...charts.map((chart) => h("section", { class: "card" }, h("h2", {}, chart.title), chart.element)),
    h("section", { class: "card" }, h("h2", {}, "Now"),
      table("The newest figures", [["Run"], ["State"], ["Step"], ["Loss"], ["Evaluation loss"]], body)));
  heading.focus();
  charts.forEach((chart) => chart.draw());
  const runs = await Promise.all(chosen.map((id) => get(`/api/v1/runs/${encodeURIComponent(id)}`)));
  body.replaceChildren(...runs.map((run) => h("tr", {}, h("td", {}, h("a", { href: `#/runs/${run.id}` }, run.id)),
    h("td", {}, stateLabel(run.status)), h("td", {}, String(run.progress.step)), h("td", {}, number(run.loss, 4)),
    h("td", {}, number(run.eval_loss, 4)))));
  if (runs.every((run) => run.progress.step === 0)) charts.forEach((chart) => chart.explain("None of these runs has done a step."));
  chosen.forEach((id, index) => {
    follow(`/api/v1/runs/${encodeURIComponent(id)}/events?metrics=true&points=2000`, signal, (kind, record) => {
      if (kind !== "metric") return;
      for (const chart of charts) {
        const [figure] = chart.figures;
        if (figure.kind === record.kind) chart.add(index, record.step, record[figure.name]);
      }
    });
  });
}
