// The endpoint's HTTP API, as far as the page needs it.

const JOB_PIXELS = 4e6; // a larger picture goes as a job: its answer takes longer than a connection should stay open
const POLL = 1000; // milliseconds

// An answer other than a picture. status: HTTP's, 0 where there was none; wait: seconds after which to try again.
export class Problem extends Error {
  constructor(status, detail, wait = 0) {
    super(detail);
    Object.assign(this, { status, wait });
  }
}

// Restore a picture (Blob) -> {blob, faces: [{box, identity}], count, version, run, dataset}.
// wishes: the query of POST /v1/restore; pixels: of the picture, 0 where unknown; onstate: told ("sending", 0..1) and
// ("waiting"). Throws Problem, or an AbortError once `signal` says so.
export async function restore(picture, wishes, { key, pixels = 0, onstate, signal }) {
  const query = new URLSearchParams(wishes);
  const large = pixels > JOB_PIXELS;
  const first = await send(`v1/${large ? "jobs" : "restore"}?${query}`, picture, key, onstate, signal);
  return result(first.status === 202 ? await job(first, key, signal) : first);
}

// What is served: GET /v1/model.
export async function model(key) {
  const response = await fetch("v1/model", { headers: authorization(key) });
  if (!response.ok) throw await problem(response);
  return response.json();
}

async function job(accepted, key, signal) {
  const address = accepted.headers.get("Location");
  for (;;) {
    const response = await ask(address, key, signal);
    if (!response.ok) throw await problem(response);
    const told = await response.json();
    if (told.status === "failed") throw new Problem(told.problem.status, told.problem.detail);
    if (told.status === "done") break;
    await pause(POLL, signal);
  }
  const response = await ask(`${address}/result`, key, signal);
  if (!response.ok) throw await problem(response);
  return response;
}

async function ask(address, key, signal) {
  try {
    return await fetch(address, { headers: authorization(key), signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
}

// POST with the progress of the upload, which fetch does not tell -> Response.
function send(address, body, key, onstate, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.responseType = "blob";
    request.setRequestHeader("Content-Type", body.type || "application/octet-stream");
    for (const [name, value] of Object.entries(authorization(key))) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onstate("sending", event.loaded / event.total);
    request.upload.onload = () => onstate("waiting");
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onload = async () => {
      const { status, response: blob } = request;
      const answer = new Response(blob, { status, headers: headersOf(request) });
      if (answer.ok) resolve(answer);
      else reject(await problem(answer));
    };
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

function headersOf(request) {
  const lines = request.getAllResponseHeaders().trim().split("\r\n");
  return lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
}

async function result(response) {
  const { headers } = response;
  const boxes = list(headers.get("X-Face-Boxes"));
  const identity = list(headers.get("X-Identity"));
  return {
    blob: await response.blob(),
    faces: boxes.map((box, i) => ({ box, identity: identity[i] ?? null })),
    count: Number(headers.get("X-Faces")),
    version: headers.get("X-Model-Version"),
    run: headers.get("X-Run-Id"),
    dataset: headers.get("X-Dataset-Digest"),
  };
}

function list(header) {
  return header ? JSON.parse(header) : [];
}

// A problem document (RFC 9457) as what is thrown; proxies answer in other ways.
async function problem(response) {
  const told = await response.json().catch(() => ({}));
  const detail = told.detail || `The server answered ${response.status}.`;
  return new Problem(response.status, detail, Number(response.headers.get("Retry-After")) || 0);
}

function unreachable() {
  return new Problem(0, "The connection failed before there was an answer.");
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    }, { once: true });
  });
}
