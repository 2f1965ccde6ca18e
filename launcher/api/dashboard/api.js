// Talks to the API: JSON, downloads, and server-sent events that go on where they broke off.
// EventSource cannot send a token, so the few lines that read a stream are here.

const TOKEN = "gemfleet-token";
const ELSEWHERE = "if the API ended with its cluster, `gemfleet serve` on the head shows the same";
let asking = null;

export async function get(path) {
  return (await answered(path, {})).json();
}

/** Whether the API answers; where it does not, the page says that it shows what it heard last. */
export async function answers() {
  try {
    return (await fetch("/healthz", { cache: "no-store" })).ok;
  } catch {
    connection(`no answer: this is what was heard last; ${ELSEWHERE}`);
    return false;
  }
}

export async function post(path) {
  return (await answered(path, { method: "POST" })).json();
}

export async function patch(path, changes) {
  return (await answered(path, { method: "PATCH", body: JSON.stringify(changes), headers: { "Content-Type": "application/json" } })).json();
}

/** Save a file; with a token a plain link would not do. */
export async function download(path, name) {
  const blob = await (await answered(path, {})).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Call take(kind, body) for each message until `signal` aborts or the server says that there is no more. */
export async function follow(path, signal, take) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const answer = await answered(path, { headers, signal });
      connection("live");
      for await (const message of messages(answer.body)) {
        if (message.id) last = message.id;
        if (message.event === "end") return connection("");
        take(message.event, JSON.parse(message.data));
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status && error.status < 500) throw error;
      connection(`connection lost, trying again; ${ELSEWHERE}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let fields = {};
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (fields.data !== undefined) yield fields;
          fields = {};
        } else if (!line.startsWith(":")) {
          const colon = line.indexOf(": ");
          fields[line.slice(0, colon)] = line.slice(colon + 2);
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function answered(path, options) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(path, { ...options, headers, cache: "no-store" });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askForToken();
      continue;
    }
    const problem = await answer.json().catch(() => ({ detail: answer.statusText }));
    throw Object.assign(new Error(problem.detail), { status: answer.status });
  }
}

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token-dialog");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, document.getElementById("token").value.trim());
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function connection(text) {
  const shown = document.getElementById("connection");
  if (shown.textContent !== text) shown.textContent = text;
}
