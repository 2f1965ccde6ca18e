// The checkpoints of a run, newest first, with their evaluation losses, and the adapter once it is published.

import { download, get } from "./api.js";
import { announce, h, number, replace, size, table } from "./dom.js";

const SHOWN = 10;
const MORE = 50;

/** element: the panel; show() asks again, showAdapter(run) offers the adapter of a run that has published one. */
export function checkpointsPanel(path) {
  const body = h("tbody"), adapter = h("p", { class: "actions", hidden: true });
  const none = h("p", { class: "quiet" }, "No checkpoint on the head yet.");
  const older = h("button", { class: "plain", hidden: true, id: "older-checkpoints" }, "Older checkpoints");
  let limit = SHOWN, shown = "";

  async function show() {
    const found = await get(`${path}/checkpoints?limit=${limit}`).catch(() => null);
    if (found === null) return; // the stream tells of a lost connection
    older.hidden = !found.has_more;
    none.hidden = found.data.length > 0;
    if (JSON.stringify(found.data) === shown) return; // the stream also tells of checkpoints that are shown already
    shown = JSON.stringify(found.data);
    const losses = found.data.map((one) => one.eval_loss).filter((loss) => loss !== null);
    replace(body, ...found.data.map((one) => rowOf(one, losses.length > 1 && one.eval_loss === Math.min(...losses))));
  }

  older.addEventListener("click", () => {
    limit += MORE;
    show();
  });
  return {
    element: h("section", { class: "card", "aria-label": "Checkpoints" }, h("h2", {}, "Checkpoints"), adapter,
      h("div", { class: "bounded", tabindex: "0", role: "region", "aria-label": "Table of checkpoints" },
        table("On the head, newest first", [["Step"], ["Evaluation loss"], ["Size"], ["State"], ["Get"]], body), none, older)),
    show,
    showAdapter(run) {
      if (!run.adapter_url || !adapter.hidden) return;
      adapter.hidden = false;
      adapter.append(getButton("get-adapter", "Download the adapter", null, run.adapter_url, `${run.id}-adapter.tar`));
    },
  };
}

function rowOf(checkpoint, best) {
  const { step } = checkpoint;
  const button = getButton(`get-${step}`, "Download", `Download checkpoint ${step}`, checkpoint.download_url, `${checkpoint.run_id}-${step}.tar`);
  return h("tr", { class: best ? "best" : null }, h("td", {}, String(step)),
    h("td", {}, number(checkpoint.eval_loss, 4), best ? h("small", {}, " best") : null), h("td", {}, size(checkpoint.bytes)),
    h("td", {}, checkpoint.state), h("td", {}, checkpoint.state === "verified" ? button : "–"));
}

function getButton(id, text, label, address, name) {
  return h("button", { class: "plain", id, "aria-label": label,
    onclick: () => download(address, name).catch((error) => announce(error.message)) }, text);
}
