// A run's page: where it stands, its charts, ranks, events, and the panels of run_*.js and data.js.

import { follow, get, post } from "./api.js";
import { chartsOf, controlsOf } from "./charts.js";
import { dataParts } from "./data.js";
import { announce, clock, h, moment, number, progressBar, quantity, replace, show, stateLabel, table } from "./dom.js";
import { checkpointsPanel } from "./run_checkpoints.js";
import { logPanel } from "./run_log.js";
import { predictionsPanel } from "./run_predictions.js";

const STATES = { queued: "queued", preflight: "being checked", staging: "sending the model to its nodes",
  preparing_data: "preparing its data", finding_batch: "looking for a batch size", training: "doing its first step",
  restarting: "starting its ranks again", publishing: "writing its result" };
const TRACKERS = { mlflow: "MLflow", wandb: "W&B" };
const ENDED = new Set(["succeeded", "failed", "stopped", "interrupted"]);

export async function runPage(signal, id) {
  const path = `/api/v1/runs/${encodeURIComponent(id)}`;
  const parts = { status: h("section", { class: "card", "aria-label": "State" }), ranks: h("tbody"),
    data: h("section", { class: "card", "aria-label": "Data", hidden: true }),
    events: h("ol", { class: "events", reversed: true, tabindex: "0", "aria-label": "Events, newest first" }) };
  const panels = { checkpoints: checkpointsPanel(path), log: logPanel(path, signal), predictions: predictionsPanel(path) };
  const card = (title, ...inner) => h("section", { class: "card" }, h("h2", {}, title), ...inner);
  let [run, { data: figures }] = await Promise.all([get(path), get("/api/v1/figures")]);
  if (signal.aborted) return;
  const charts = chartsOf(figures);
  const heading = show(id, parts.status,
    controlsOf(charts), h("div", { class: "grid" }, ...charts.map((chart) => card(chart.title, chart.element, chart.table))),
    h("div", { class: "grid" },
      card("Ranks", h("div", { class: "bounded", tabindex: "0", role: "region", "aria-label": "Table of ranks" },
        table("Each worker process", [["Rank"], ["Node"], ["Last heard of"]], parts.ranks))),
      panels.checkpoints.element, card("Events", parts.events), panels.log.element),
    panels.predictions.element, parts.data);
  heading.focus();

  let problem = "";
  function showRun() {
    for (const chart of charts) chart.explain(whyEmpty(run, chart));
    replace(parts.status, ...statusOf(run, figures, { stop, resume }, problem));
    panels.checkpoints.showAdapter(run);
    panels.log.grow(run.ranks.length);
    replace(parts.ranks, ...run.ranks.map((rank) => h("tr", {}, h("td", {}, String(rank.rank)),
      h("td", {}, `${rank.address} (${rank.node.slice(0, 8)})`), h("td", {}, moment(rank.heartbeat_at)))));
  }

  async function showData() {
    const { view } = await get(`${path}/data`).catch(() => ({ view: null }));
    if (view === null || signal.aborted || !parts.data.hidden) return;
    parts.data.append(h("h2", {}, "Data"), ...dataParts(view));
    parts.data.hidden = false;
  }

  async function stop() {
    if (!(await confirmed(`Stop ${id}?`, "It saves a checkpoint after the step it is in, and ends."))) return;
    if (await changed("stop")) announce("The run was asked to stop.");
    showRun();
  }

  async function resume() {
    if (await changed("resume")) {
      announce("The run goes on from its newest whole checkpoint.");
      dispatchEvent(new Event("hashchange")); // the streams of this page have ended: open it anew
    } else showRun();
  }

  /** Ask for a change of the run; whether it was accepted. */
  async function changed(verb) {
    try {
      run = await post(`${path}/${verb}`);
      problem = "";
    } catch (error) {
      problem = error.message;
    }
    return !problem;
  }

  /** The end as the event tells it: the API may end with its cluster before it can be asked once more. */
  function showEnd({ data, created_at: moment }) {
    const { figures = {} } = data;
    run = { ...run, status: data.state, reason: data.reason ?? run.reason, waiting_for: null, updated_at: moment,
      loss: figures.loss ?? run.loss, throughput: { ...run.throughput, ...figures }, progress: { ...run.progress, eta_seconds: null } };
    showRun();
  }

  let refreshing = null, lookAgain = false;
  function refresh() {
    refreshing ??= setTimeout(async () => {
      refreshing = null;
      if (signal.aborted) return;
      if (lookAgain) { // data is there once it is prepared, answers once they are published
        showData();
        panels.predictions.show();
      }
      lookAgain = false;
      run = await get(path).catch(() => run);
      showRun();
    }, 1000);
  }

  showRun();
  panels.log.open();
  panels.checkpoints.show();
  panels.predictions.show();
  showData();
  follow(`${path}/events?metrics=true&points=1000`, signal, (kind, body) => {
    if (kind === "metric") {
      charts[0].positions.hear(body);
      for (const chart of charts) chart.take(body);
    } else {
      parts.events.prepend(h("li", {}, h("time", {}, moment(body.created_at)), body.message));
      if (body.type === "checkpoint") panels.checkpoints.show();
      if (body.type === "state") lookAgain = true;
      if (endsRun(run, body)) showEnd(body);
      if (body.type === "state" && Date.now() / 1000 - body.created_at < 5) announce(`The run is ${body.message}.`);
    }
    refresh();
  });
}

/** Whether an event is the newest end of this run; the stream begins with older ones. */
function endsRun(run, event) {
  return event.type === "state" && ENDED.has(event.data.state) && !ENDED.has(run.status) && event.created_at >= run.updated_at;
}

/** Why a chart has no points: a sentence. */
function whyEmpty(run, chart) {
  const done = run.progress.step > 0;
  if (done && chart.figures[0].per_rank) return "The ranks of this run did not report this figure.";
  if (done) return "The steps of this run have no such figure.";
  if (ENDED.has(run.status)) return `The run ended before its first step (${run.status}${run.reason ? `: ${run.reason}` : ""}).`;
  if (run.waiting_for) return `No step yet: ${run.waiting_for}.`;
  return `No step yet: the run is ${STATES[run.status] ?? run.status}.`;
}

/** Label and value of each figure that has a tile; of a run that has ended they are those of all steps. */
function tilesOf(run, figures) {
  const tiles = figures.filter((figure) => figure.tile);
  const byUnit = [...Map.groupBy(tiles, (figure) => figure.unit).values()].flat(); // equal units stand side by side
  return Object.fromEntries(byUnit.map((figure) => {
    const of = ENDED.has(run.status) && figure.over_run ? ` (${figure.over_run})` : "";
    return [figure.tile + of, quantity(run[figure.name] ?? run.throughput?.[figure.name], figure.unit)];
  }));
}

function statusOf(run, figures, act, problem) {
  const { progress } = run;
  const ended = ENDED.has(run.status);
  const facts = {
    Step: `${progress.step} of ${progress.total_steps}`, Epoch: `${number(progress.epoch, 2)} of ${number(progress.epochs, 2)}`,
    "Time left": clock(progress.eta_seconds), ...tilesOf(run, figures), Ranks: String(run.ranks.length),
    "Last checkpoint": run.last_checkpoint ? `step ${run.last_checkpoint.step}` : "–", Restarts: String(run.restarts),
    ...(run.batch_finder ? { "Micro-batch found": `${run.batch_finder.rows}${run.batch_finder.variant ? ` (${run.batch_finder.variant})` : ""}` } : {}),
    Model: run.model ?? "–",
    ...Object.fromEntries(run.trackers.map((tracker) => [TRACKERS[tracker.type], trackerLink(tracker)])),
  };
  const why = run.waiting_for || run.reason || run.stopped_early;
  const asked = run.stop_requested && !ended;
  return [
    h("div", { class: "top" }, stateLabel(run.status), run.status === "succeeded" ? null : ended
      ? h("button", { onclick: act.resume, class: "plain", id: "resume" }, "Resume")
      : h("button", { onclick: act.stop, disabled: asked, id: "stop" }, asked ? "Stopping …" : "Stop")),
    problem ? h("p", { class: "problem", role: "alert" }, problem) : null,
    run.sweep ? h("p", {}, "A trial of the sweep ", h("a", { href: `#/sweeps/${run.sweep}`, id: "sweep" }, run.sweep)) : null,
    why ? h("p", { class: run.status === "failed" ? "problem" : "quiet" }, why) : null,
    run.published ? h("p", { class: "quiet" }, `Published: ${run.published}`) : null,
    progressBar(progress, "progress"),
    h("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  ].filter(Boolean);
}

/** The page of the run at a tracker, or where the tracker is. */
function trackerLink({ type, link, place, problem }) {
  const label = `Open the run in ${TRACKERS[type]}`;
  const name = link ? h("a", { href: link, target: "_blank", rel: "noopener noreferrer", "aria-label": label }, "Open") : place;
  return h("span", { title: problem || place }, name, problem ? " (takes no records)" : null);
}

function confirmed(title, text) {
  const dialog = document.getElementById("confirm-dialog");
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
