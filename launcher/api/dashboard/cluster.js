// The nodes: their GPUs and the ranks on them, the ways between them as the doctor measured them, and who waits.

import { follow, get } from "./api.js";
import { clock, h, moment, number, show, size, table } from "./dom.js";

const LOOK_AGAIN_MILLISECONDS = 2000;
const SILENT_SECONDS = 30;
const WAYS = new Set(["ports", "loss", "all-reduce", "exchange", "object store", "checkpoint store"]); // what is between nodes

export async function clusterPage(signal) {
  let cluster = await get("/api/v1/cluster");
  if (signal.aborted) return;
  const status = h("section", { class: "card", "aria-label": "State" });
  const nodes = h("div");
  const queue = h("section", { class: "card", "aria-label": "Queue" });
  const ways = h("section", { class: "card", "aria-label": "Links" });
  show("Cluster", status, nodes, queue, ways).focus();

  function update() {
    settle(status, statusOf(cluster));
    settle(nodes, placesOf(cluster).map(nodeCard));
    settle(queue, queueOf(cluster.waiting));
    settle(ways, waysOf(cluster.examination));
  }
  update();
  follow("/api/v1/events", signal, () => {}); // says whether the API still answers
  while (!signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MILLISECONDS));
    if (signal.aborted) return;
    cluster = await get("/api/v1/cluster").catch(() => cluster);
    if (!signal.aborted) update();
  }
}

/** Show these elements. One of the same kind stays and takes over what is new, so that a link is still there when it is
 * clicked. Not for elements with listeners. */
function settle(container, children) {
  const before = [...container.childNodes];
  children.forEach((child, index) => {
    const old = before[index];
    if (!old) container.append(child);
    else if (old.nodeType !== Node.ELEMENT_NODE || old.tagName !== child.tagName || old.id !== child.id) old.replaceWith(child);
    else if (!old.isEqualNode(child)) {
      for (const { name } of [...old.attributes]) if (!child.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of child.attributes) old.setAttribute(name, value);
      settle(old, [...child.childNodes]);
    }
  });
  before.slice(children.length).forEach((node) => node.remove());
}

function statusOf({ connected, nodes, cpus, cpu_reserved, gpus, gpu_reserved, head, ranks, waiting }) {
  const facts = {
    ...(connected ? { Nodes: nodes.length, GPUs: `${number(gpus * (1 - gpu_reserved), 1)} of ${number(gpus, 1)} free`,
      CPUs: `${number(cpus * (1 - cpu_reserved), 1)} of ${number(cpus, 1)} free` } : {}),
    "Ranks that run": ranks.length, "Runs that wait": waiting.length, "Head's load": percent(head.cpu_utilisation),
    "Head's memory": `${size(head.memory_used_bytes)} of ${size(head.memory_bytes)}`, "Head's disk": `${size(head.disk_free_bytes)} free`,
  };
  return [
    connected ? null : h("p", { class: "quiet" }, "This API runs outside a Ray cluster: it sees the head, and what runs report of their nodes."),
    h("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
  ].filter(Boolean);
}

/** The nodes that Ray shows, then those that only ranks tell of, each with its ranks and, for the head, its GPUs. */
function placesOf({ nodes, ranks, head, connected }) {
  const places = nodes.map((node) => ({ ...node, ranks: ranks.filter((rank) => rank.node === node.id), devices: node.is_head ? head.gpus : [] }));
  if (!connected && head.gpus.length) places.push({ hostname: head.hostname, is_head: true, ranks: [], devices: head.gpus });
  const known = new Set(nodes.map((node) => node.id));
  for (const rank of ranks.filter((one) => !known.has(one.node))) {
    let place = places.find((one) => one.address === rank.address && one.told);
    if (!place) places.push(place = { address: rank.address, told: true, ranks: [], devices: [] });
    place.ranks.push(rank);
  }
  return places;
}

function nodeCard(node) {
  const title = [node.hostname, node.address].filter(Boolean).join(" · ") + (node.is_head ? " (head)" : "");
  const has = node.cpus === undefined ? null : [
    node.gpus ? `${number(node.gpus_free, 1)} of ${number(node.gpus, 1)} ${node.gpu_kind || "GPUs"} free` : "no GPU",
    `${number(node.cpus_free, 1)} of ${number(node.cpus, 1)} CPUs free`, `${size(node.memory_bytes)} memory`].join(" · ");
  const gpus = node.devices.map((gpu) => h("tr", {}, h("td", {}, `${gpu.index}: ${gpu.name}`), ...load(gpu.utilisation, gpu.memory_used_bytes, gpu.memory_bytes, `GPU ${gpu.index}`),
    h("td", {}, gpu.celsius === null ? "unknown" : `${number(gpu.celsius, 0)} °C`)));
  const ranks = node.ranks.map((rank) => h("tr", {}, h("td", {}, h("a", { href: `#/runs/${rank.run_id}`, id: `rank-${rank.run_id}-${rank.rank}` }, rank.run_id), ` rank ${rank.rank}`),
    ...load(rank.utilisation, rank.memory_bytes, rank.memory_total_bytes, `rank ${rank.rank} of ${rank.run_id}`), h("td", { class: "wide" }, rank.heartbeat_age_seconds > SILENT_SECONDS ? `${clock(rank.heartbeat_age_seconds)} ago` : "now")));
  return h("section", { class: "card", "aria-label": title }, h("h2", {}, title), has ? h("p", { class: "quiet" }, has) : null,
    gpus.length ? table("GPUs as the driver tells now", [["GPU"], ["Utilisation"], ["Memory"], ["Temperature"]], h("tbody", {}, ...gpus), "loads") : null,
    ranks.length ? table("Ranks, with the load of their devices in the newest step", [["Rank"], ["Utilisation"], ["Memory"], ["Last sign", "wide"]], h("tbody", {}, ...ranks), "loads")
      : node.id ? h("p", { class: "quiet" }, "No rank runs here.") : null);
}

/** Two cells: how busy a device is, and how full. */
function load(utilisation, used, total, name) {
  return [
    h("td", {}, ...(utilisation === null ? ["unknown"] : [meter(utilisation, `utilisation of ${name}`), h("small", { class: "quiet" }, percent(utilisation))])),
    h("td", {}, ...(used === null || !total ? ["unknown"] : [meter(used / total, `memory of ${name}`), h("small", { class: "quiet" }, `${size(used)} of ${size(total)}`)])),
  ];
}

function meter(value, label) {
  return h("meter", { min: "0", max: "1", value: value.toFixed(3), "aria-label": label });
}

function percent(share) {
  return `${number(share * 100, 0)} %`;
}

function queueOf(waiting) {
  const title = h("h2", {}, "Queue");
  if (!waiting.length) return [title, h("p", { class: "quiet" }, "No run waits.")];
  const rows = waiting.map((run, index) => h("tr", {}, h("td", {}, String(index + 1)), h("td", {}, h("a", { href: `#/runs/${run.run_id}`, id: `waiting-${run.run_id}` }, run.run_id)),
    h("td", {}, asked(run)), h("td", { class: "wide" }, moment(run.since)), h("td", { class: "wide" }, run.waiting_for ?? "–")));
  return [title, table("In the order in which they begin", [["Place"], ["Run"], ["Asks for"], ["Since", "wide"], ["Waits for", "wide"]], h("tbody", {}, ...rows), "queue")];
}

function asked({ ranks, gpus_per_rank, cpus_per_rank, gpu_kind }) {
  if (ranks === null) return "not known yet";
  const each = gpus_per_rank ? `${number(gpus_per_rank, 1)} ${gpu_kind || "GPU"}` : `${number(cpus_per_rank, 1)} CPU`;
  return `${ranks} ranks with ${each} each`;
}

/** What the doctor measured between nodes, then all else that is not as it should be. */
function waysOf(examination) {
  const title = h("h2", {}, "Links and stores");
  if (!examination) return [title, h("p", { class: "quiet" }, "Not measured yet: ", h("code", {}, "gemfleet doctor"), " on the head measures the ways between nodes.")];
  const wanted = examination.findings.filter((one) => WAYS.has(one.check) || one.level !== "pass");
  const rows = wanted.map((one) => h("tr", {}, h("td", {}, h("span", { class: `state ${{ pass: "succeeded", warn: "waiting", fail: "failed" }[one.level]}` }, one.level)),
    h("td", {}, one.check), h("td", {}, one.where), h("td", {}, one.figure, ...(one.remedy ? [h("br"), h("small", { class: "quiet" }, one.remedy)] : []))));
  return [title, table(`As the doctor measured them, ${moment(examination.examined_at)}`, [[""], ["Check"], ["Where"], ["Figure"]], h("tbody", {}, ...rows), "ways")];
}
