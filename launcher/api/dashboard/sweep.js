// A sweep's page: its trials in a table, and their evaluation losses in one chart.

import { follow, get } from "./api.js";
import { Chart } from "./charts.js";
import { announce, h, number, progressBar, replace, show, stateLabel, table } from "./dom.js";

const LOOK_AGAIN_MILLISECONDS = 1000;
const QUIET = new Set(["waiting", "succeeded", "failed", "stopped", "interrupted", "pruned"]); // states without news to come

export async function sweepPage(signal, id) {
  const path = `/api/v1/sweeps/${encodeURIComponent(id)}`;
  let sweep = await get(path);
  if (signal.aborted) return;
  const names = shortNames(sweep.fields);
  const status = h("section", { class: "card", "aria-label": "State" });
  const body = h("tbody");
  const reasons = h("ul", { class: "reasons" });
  const figure = { name: sweep.metric, unit: "nats/token", chart: { title: "Evaluation loss", from_zero: false } };
  const chart = new Chart("Evaluation loss of each trial", [figure], []);
  const columns = [["Trial"], ...Object.values(names).map((name) => [name]), ["State"], ["Progress"], ["Loss"], ["At step", "wide"]];
  const heading = show(`Sweep ${id}`, status,
    h("section", { class: "card" }, h("h2", {}, chart.title), chart.element),
    h("section", { class: "card" }, h("h2", {}, "Trials"),
      table("Each trial is a run. Loss: the lowest evaluation loss after the first step.", columns, body, "trials"), reasons));
  heading.focus();
  chart.draw();

  function update() {
    replace(status, ...statusOf(sweep, names));
    replace(body, ...sweep.trials.map((trial) => rowOf(sweep, trial, names)));
    replace(reasons, ...sweep.trials.filter((trial) => trial.reason).map((trial) => h("li", {}, `Trial ${trial.number}: ${trial.reason}`)));
    chart.explain(`No evaluation yet: the sweep is ${sweep.status}.`);
    for (const trial of sweep.trials)
      for (const { step, value } of trial.evaluations) chart.addSeveral(step, [[`trial ${trial.number}`, value]]);
  }

  let looking = null;
  function lookAgain() {
    looking ??= setTimeout(async () => {
      looking = null;
      if (signal.aborted) return;
      const before = sweep.status;
      sweep = await get(path).catch(() => sweep);
      update();
      if (sweep.status !== before) announce(`The sweep is ${sweep.status}.`);
      if (sweep.status === "running" && !sweep.trials.some(goesOn)) lookAgain(); // its own end is no event of a run
    }, LOOK_AGAIN_MILLISECONDS);
  }

  update();
  follow("/api/v1/events?metrics=true", signal, (kind, body) => {
    if (body.run_id?.startsWith(`${id}-`)) lookAgain();
  });
}

function goesOn(trial) {
  return !QUIET.has(trial.status);
}

function statusOf(sweep, names) {
  const { best } = sweep;
  const facts = {
    "Trials ended": `${sweep.ended} of ${sweep.wanted}`, Compared: sweep.metric,
    Chosen: { grid: "all combinations", random: "drawn at random", tpe: "drawn near the best" }[sweep.sampler],
    Pruning: sweep.prune ? "on" : "off", "Best loss": best ? number(best.value, 4) : "–",
  };
  return [
    h("div", { class: "top" }, stateLabel(sweep.status)),
    best ? h("p", {}, sweep.status === "running" ? "Best so far: " : "Best: ", h("a", { href: `#/runs/${best.run_id}`, id: "best" }, `trial ${best.number}`),
      ` (${settingsOf(best, names)})`) : h("p", { class: "quiet" }, "No trial has been evaluated after its first step yet."),
    progressBar({ fraction: sweep.ended / sweep.wanted }, "trials that have ended"),
    h("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  ];
}

function rowOf(sweep, trial, names) {
  const isBest = trial.number === sweep.best?.number;
  const name = `trial ${trial.number}`;
  return h("tr", { class: isBest ? "best" : null },
    h("td", {}, trial.status !== "waiting" ? h("a", { href: `#/runs/${trial.run_id}`, id: `trial-${trial.number}`, "aria-label": name }, String(trial.number)) : String(trial.number)),
    ...Object.keys(names).map((field) => h("td", {}, shown(trial.settings[field]))),
    h("td", {}, stateLabel(trial.status)),
    h("td", {}, progressBar({ fraction: trial.total_steps ? trial.step / trial.total_steps : 0 }, `progress of ${name}`),
      h("small", { class: "quiet" }, trial.total_steps ? `${trial.step}/${trial.total_steps}` : "–")),
    h("td", {}, number(trial.value, 4), isBest ? h("small", {}, " best") : null),
    h("td", { class: "wide" }, trial.best_step === null ? "–" : String(trial.best_step)));
}

function settingsOf(trial, names) {
  return Object.entries(names).map(([field, name]) => `${name} ${shown(trial.settings[field])}`).join(", ");
}

/** The last part of each field's name, or all of it where two would be equal. */
function shortNames(fields) {
  const last = (field) => field.split(".").at(-1);
  const alone = (field) => fields.filter((other) => last(other) === last(field)).length === 1;
  return Object.fromEntries(fields.map((field) => [field, alone(field) ? last(field) : field]));
}

/** A value for people: without quotes, a number with four digits. */
function shown(text = "") {
  const value = Number(text);
  return text !== "" && Number.isFinite(value) ? String(Number(value.toPrecision(4))) : text.replaceAll('"', "");
}
