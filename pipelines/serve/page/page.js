// What happens on the page: a photograph comes in, its answer is shown, wishes are changed, it is restored again.

import { Problem, model, restore } from "./api.js";
import { showFaces } from "./faces.js";
import { slider } from "./slider.js";

const $ = (id) => document.getElementById(id);
const TITLES = {
  0: "The server does not answer.",
  401: "This server wants an API key.",
  403: "This API key is not taken.",
  408: "The upload took too long.",
  413: "This picture is too large.",
  415: "This is no picture that can be restored.",
  422: "This picture cannot be restored.",
  429: "The server is busy.",
  503: "The server is busy.",
  504: "The server took too long.",
};

const split = slider($("stage"), $("split"));
// given: the File; shown: whether this browser can show it; faces: [{box, identity, chosen}] of the photograph.
let given = null, shown = false, pixels = 0, faces = [], key = "", limits = {}, work = null, ticking = null;
const urls = { before: "", after: "" };

function take(files) {
  const [picture, ...more] = files;
  if (picture) start(picture, more.length ? "Only the first of the pictures was taken." : "");
}

// A new photograph: as it is at once, then restored.
async function start(picture, note = "") {
  work?.abort();
  work = null; // what it still does is nobody's concern
  $("wishes").reset();
  strength();
  [given, faces] = [picture, []];
  $("start").hidden = true;
  $("another").hidden = false;
  $("note").textContent = note;
  $("work").hidden = false;
  $("work").dataset.has = "nothing";
  const visible = await show("before", picture);
  if (given !== picture) return; // another one came in the meantime
  shown = visible;
  pixels = shown ? frame($("before")) : 0;
  if (shown) $("work").dataset.has = "before";
  await run();
}

// Put a Blob into one of the two pictures; whether the browser can show it.
async function show(id, blob) {
  URL.revokeObjectURL(urls[id]);
  urls[id] = URL.createObjectURL(blob);
  $(id).src = urls[id];
  return $(id).decode().then(() => true, () => false);
}

// Give the stage a picture's shape; its pixels.
function frame({ naturalWidth: width, naturalHeight: height }) {
  $("stage").style.setProperty("--ratio", width / height);
  $("stage").style.setProperty("--width", `${width}px`);
  return width * height;
}

// Restore the photograph with the wishes of the form.
async function run() {
  work?.abort();
  if (limits.bytes && given.size > limits.bytes) {
    const mega = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    return tell(new Problem(413, `It has ${mega(given.size)}; this server takes ${mega(limits.bytes)}.`));
  }
  const mine = (work = new AbortController());
  $("alert").hidden = true;
  busy(true);
  try {
    const asked = wishes();
    const answer = await restore(given, asked, { key, pixels, onstate: state, signal: mine.signal });
    if (work === mine) await present(answer, asked);
  } catch (error) {
    if (work === mine && error.name !== "AbortError") tell(error);
    else if (work === mine && $("work").dataset.has !== "both") again();
  } finally {
    if (work === mine) busy(false);
  }
}

function wishes() {
  const asked = { faces: $("mode").value, strength: $("strength").value / 100, format: $("format").value };
  const chosen = faces.flatMap((face, i) => (face.chosen ? [i] : []));
  if (asked.faces === "auto" && chosen.length < faces.length) asked.only = chosen.join(",");
  return asked;
}

async function present(answer, asked) {
  const picture = given;
  if (!(await show("after", answer.blob))) throw new Problem(500, "The answer is no picture that this browser can show.");
  if (given !== picture) return;
  faces = merged(answer.faces, asked.only !== undefined);
  if (!shown) frame($("after"));
  $("work").dataset.has = shown ? "both" : "after";
  $("people").hidden = !faces.length;
  $("show-boxes").closest("label").hidden = asked.faces !== "auto";
  $("boxes").hidden = asked.faces !== "auto" || !$("show-boxes").checked;
  showFaces(faces, shown ? $("before") : null, $("after"), $("faces"), $("boxes"), (i, chosen) => {
    faces[i].chosen = chosen;
    choosable();
  });
  choosable();
  $("download").href = urls.after;
  $("download").download = `${given.name.replace(/\.[^.]*$/, "") || "photograph"}-restored.${asked.format}`;
  if (!shown) note("This browser cannot show the picture that was sent, so there is only the restored one.");
  else if (asked.faces === "auto" && !answer.count && asked.only === undefined) {
    note("No face was found, so nothing was changed. If the picture is one face, or a face that fills it, say so under “What it is”.");
  }
  lineage({ version: answer.version, run_id: answer.run, dataset_digest: answer.dataset });
}

// The photograph's faces, with what an answer says of them: one to chosen faces may name those alone.
function merged(answered, some) {
  const by = (list) => new Map(list.map((face) => [face.box.join(), face]));
  const [known, told] = [by(faces), by(answered)];
  const all = some ? faces : answered;
  return all.map((face) => {
    const name = face.box.join();
    return { ...face, ...told.get(name), chosen: known.get(name)?.chosen ?? true };
  });
}

function choosable() {
  $("again").disabled = $("mode").value === "auto" && faces.length > 0 && !faces.some((face) => face.chosen);
}

function note(words) {
  $("note").textContent = [$("note").textContent, words].filter(Boolean).join(" ");
}

function state(what, part) {
  clearInterval(ticking);
  $("seconds").textContent = "";
  if (what === "sending") {
    $("progress").value = part;
    $("state").textContent = "Sending";
    return;
  }
  const began = Date.now();
  $("progress").removeAttribute("value");
  $("state").textContent = "Restoring";
  ticking = setInterval(() => ($("seconds").textContent = `${Math.round((Date.now() - began) / 1000)} s`), 1000);
}

function busy(is) {
  clearInterval(ticking);
  $("busy").hidden = !is;
  $("work").setAttribute("aria-busy", is);
  if (is) state("sending", 0);
}

// Say in plain words what went wrong, and offer what may help.
function tell(error) {
  const { status, wait } = error instanceof Problem ? error : new Problem(500, String(error));
  $("alert-title").textContent = TITLES[status] || "The server could not restore this picture.";
  $("alert-detail").textContent = sentence(error.message);
  $("key-form").hidden = status !== 401 && status !== 403;
  $("retry").hidden = ![0, 408, 429].includes(status) && status < 500;
  if ($("retry").hidden && $("key-form").hidden && $("work").dataset.has !== "both") again();
  $("alert").hidden = false;
  countdown(wait);
}

function sentence(words) {
  const text = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

// Retry-After: the button waits, and says for how long.
function countdown(seconds) {
  const left = Math.ceil(seconds);
  $("retry").disabled = left > 0;
  $("retry").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
  clearTimeout(countdown.timer);
  if (left > 0) countdown.timer = setTimeout(countdown, 1000, left - 1);
}

function strength() {
  $("strength-shown").textContent = `${$("strength").value} %`;
}

function lineage(told) {
  const fields = { model: "name", version: "version", run_id: "run", dataset_digest: "dataset" };
  for (const [field, id] of Object.entries(fields)) {
    if (!told[field]) continue;
    $(`model-${id}`).textContent = /^[0-9a-f]{32,}$/.test(told[field]) ? told[field].slice(0, 12) : told[field];
    $(`model-${id}`).title = told[field];
  }
}

async function who() {
  try {
    const told = await model(key);
    limits = told.limits || {};
    lineage(told);
  } catch {
    // the foot stays as it is; the photograph's own answer says it again
  }
}

function again() {
  work?.abort();
  work = null;
  $("file").value = "";
  $("alert").hidden = $("work").hidden = $("another").hidden = true;
  $("start").hidden = false;
}

$("file").addEventListener("change", () => take($("file").files));
$("another").addEventListener("click", () => {
  again();
  $("file").focus();
});
$("cancel").addEventListener("click", () => work?.abort());
$("retry").addEventListener("click", run);
$("strength").addEventListener("input", strength);
$("mode").addEventListener("change", choosable);
$("show-boxes").addEventListener("change", () => ($("boxes").hidden = !$("show-boxes").checked));
$("wishes").addEventListener("submit", (event) => {
  event.preventDefault();
  $("note").textContent = "";
  run();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  who();
  run();
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // or the browser would open the picture instead
    const inside = name === "dragenter" || name === "dragover" || (name === "dragleave" && event.relatedTarget);
    document.body.classList.toggle("dropping", Boolean(inside));
    if (name === "drop") take(event.dataTransfer.files);
  });
}
who();
