// Record or read audio, ask this machine's server, draw what the models make of it.
"use strict";

const TOKEN = new URLSearchParams(location.search).get("token") || "";
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#aa4499", "#b58900", "#4477dd", "#8c510a", "#666677"];
const LABELS = 26; // pixels on the left of the strips, for their names
const $ = (id) => document.getElementById(id);
let shown = null; // the last answer, its gates as bytes
let recorder = null;
let limit = 60;

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "wrong" : "";
}

async function ask(path, options = {}) {
  const headers = { "X-Lamer-Token": TOKEN, ...options.headers };
  const answer = await fetch(path, { ...options, headers });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

async function describe() {
  const model = await ask("/model");
  limit = model.max_seconds;
  document.title = `lamer demo: ${model.name}`;
  $("name").textContent = model.name;
  const spoken = model.languages.length ? ` Trained on ${model.languages.join(", ")}.` : "";
  $("model").textContent = model.model + spoken;
  if (!model.text.length) say("No recogniser among these models: no text will be shown.");
  const may = navigator.mediaDevices && window.MediaRecorder;
  $("record").disabled = !may;
  if (!may) $("record").title = "this browser cannot record here";
}

// 16-bit WAV at 16 kHz of whatever the browser decodes.
async function toWav(blob) {
  const context = new OfflineAudioContext(1, 1, 16000);
  const audio = await context.decodeAudioData(await blob.arrayBuffer());
  const count = audio.length;
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, 16000, true); view.setUint32(28, 32000, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  const channels = [...Array(audio.numberOfChannels).keys()].map((k) => audio.getChannelData(k));
  for (let i = 0; i < count; i += 1) {
    const mean = channels.reduce((sum, one) => sum + one[i], 0) / channels.length;
    view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, mean))), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

// Formats that the server reads go there as they are, so that nothing is changed twice.
async function serverReads(blob) {
  const bytes = new Uint8Array(await blob.slice(0, 4).arrayBuffer());
  const start = String.fromCharCode(...bytes);
  const mpeg = bytes[0] === 0xff && bytes[1] >= 0xe0;
  return mpeg || ["RIFF", "fLaC", "OggS"].includes(start) || start.startsWith("ID3");
}

async function listen(blob) {
  say("Listening ...");
  try {
    if (!(await serverReads(blob))) {
      try {
        blob = await toWav(blob);
      } catch {
        throw new Error("Neither this program nor the browser reads this as audio.");
      }
    }
    const value = await ask("/listen", { method: "POST", body: blob });
    show(value, blob);
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function show(value, blob) {
  value.layers.forEach((layer) => {
    layer.bytes = Uint8Array.from(atob(layer.gates), (c) => c.charCodeAt(0));
  });
  const before = $("layer").selectedIndex;
  shown = value;
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(blob);
  $("answers").replaceChildren(...answers(value));
  $("layer").replaceChildren(...value.layers.map((layer) => {
    const option = document.createElement("option");
    option.textContent = name(layer, value.layers);
    return option;
  }));
  $("layer").selectedIndex = before >= 0 && before < value.layers.length ? before : value.layers.length - 1;
  $("experts").hidden = !value.layers.length;
  $("end").textContent = `${value.seconds.toFixed(1)} s`;
  $("result").hidden = false;
  draw();
}

function name(layer, all) {
  const several = all.filter((one) => one.layer === layer.layer).length > 1;
  return `layer ${layer.layer}${several ? ` (${layer.router})` : ""}, ${layer.experts} experts`;
}

function answers(value) {
  const rows = [];
  for (const kind of ["text", "language"]) {
    for (const one of value[kind]) {
      const row = document.createElement("div");
      row.className = `answer ${kind}`;
      const [head, said] = [document.createElement("span"), document.createElement("span")];
      head.textContent = `${kind}, ${one.head}`;
      said.textContent = one[kind] || "(nothing heard)";
      row.append(head, said);
      rows.push(row);
    }
  }
  if (!value.layers.length) {
    const row = document.createElement("p");
    row.className = "quiet";
    row.textContent = "This model has no routers: there are no experts to light up.";
    rows.push(row);
  }
  return rows;
}

function canvas(id, height) {
  const element = $(id);
  const ratio = window.devicePixelRatio || 1;
  element.style.height = `${height}px`;
  element.width = Math.round(element.clientWidth * ratio);
  element.height = Math.round(height * ratio);
  const context = element.getContext("2d");
  context.scale(ratio, ratio);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  return [context, element.clientWidth, height];
}

const colour = (k) => COLOURS[k % COLOURS.length];

// One column of pixels at a time: the frames below it are averaged.
function columns(layer, width) {
  const { frames, experts, bytes } = layer;
  const wide = Math.max(1, Math.floor(width));
  const found = [];
  for (let x = 0; x < wide; x += 1) {
    const first = Math.floor((x * frames) / wide);
    const last = Math.max(first + 1, Math.floor(((x + 1) * frames) / wide));
    const mean = new Float32Array(experts);
    for (let t = first; t < last; t += 1) {
      for (let k = 0; k < experts; k += 1) mean[k] += bytes[t * experts + k] / 255 / (last - first);
    }
    found.push(mean);
  }
  return found;
}

function draw() {
  if (!shown) return;
  const [wave, width, tall] = canvas("wave", 90);
  const inside = width - LABELS;
  const peak = Math.max(0.01, ...shown.envelope.flat().map(Math.abs));
  wave.fillStyle = "#33415c";
  shown.envelope.forEach(([low, high], i) => {
    const x = LABELS + (i * inside) / shown.envelope.length;
    const [top, bottom] = [high, low].map((v) => tall / 2 - (v / peak) * (tall / 2 - 3));
    wave.fillRect(x, top, Math.max(1, inside / shown.envelope.length), Math.max(1, bottom - top));
  });
  if (shown.layers.length) {
    drawOverview(inside);
    drawGates(inside);
  }
  drawCursor();
}

const rowHeight = () => Math.max(8, Math.min(22, 260 / shown.layers.length));

function drawOverview(inside) {
  const high = rowHeight();
  const [context, width] = canvas("overview", high * shown.layers.length);
  shown.layers.forEach((layer, row) => {
    const y = row * high;
    columns(layer, inside).forEach((mean, x) => {
      const best = mean.indexOf(Math.max(...mean));
      context.globalAlpha = 0.12 + 0.88 * Math.min(1, mean[best]);
      context.fillStyle = colour(best);
      context.fillRect(LABELS + x, y, 1.5, high - 1);
    });
    context.globalAlpha = 1;
    const chosen = row === $("layer").selectedIndex;
    context.fillStyle = chosen ? "#1c2330" : "#5b6678";
    if (high >= 10) context.fillText(`${layer.layer}`, 4, y + high / 2);
    if (chosen) {
      context.strokeStyle = "#1c2330";
      context.lineWidth = 2;
      context.strokeRect(LABELS + 1, y + 1, width - LABELS - 2, high - 3);
    }
  });
}

function drawGates(inside) {
  const layer = shown.layers[$("layer").selectedIndex];
  const high = 20;
  const [context] = canvas("gates", high * layer.experts);
  const means = columns(layer, inside);
  for (let k = 0; k < layer.experts; k += 1) {
    context.globalAlpha = 1;
    context.fillStyle = colour(k);
    context.fillText(`${k + 1}`, 4, k * high + high / 2);
    means.forEach((mean, x) => {
      context.globalAlpha = Math.min(1, mean[k]);
      context.fillRect(LABELS + x, k * high, 1.5, high - 2);
    });
  }
}

// A line over all three strips where the player is.
function drawCursor() {
  const at = $("player").currentTime / (shown ? shown.seconds : 1);
  for (const id of ["wave", "overview", "gates"]) {
    const element = $(id);
    let line = element.nextElementSibling;
    if (!line || line.tagName !== "I") {
      line = document.createElement("i");
      element.after(line);
      Object.assign(line.style, { display: "block", position: "relative", width: "2px", background: "#b3261e", pointerEvents: "none" });
    }
    const height = element.clientHeight;
    const x = LABELS + at * (element.clientWidth - LABELS);
    Object.assign(line.style, { height: `${height}px`, marginTop: `${-height}px`, left: `${x}px`, visibility: at > 0 ? "visible" : "hidden" });
  }
}

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    say(`No microphone: ${error.message}`, true);
    return;
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    const kind = recorder.mimeType;
    clearTimeout(recorder.timer);
    recorder = null;
    stream.getTracks().forEach((track) => track.stop());
    $("record").textContent = "Record";
    $("record").className = "";
    // Browsers record formats that audio libraries do not read: it is converted here.
    await listen(new Blob(parts, { type: kind }));
  };
  recorder.start();
  recorder.timer = setTimeout(() => recorder && recorder.stop(), 1000 * (limit - 0.5));
  $("record").textContent = "Stop";
  $("record").className = "on";
  say(`Recording, at most ${limit} s ...`);
}

$("record").addEventListener("click", record);
$("file").addEventListener("change", (event) => {
  if (event.target.files.length) listen(event.target.files[0]);
  event.target.value = "";
});
$("layer").addEventListener("change", draw);
$("overview").addEventListener("click", (event) => {
  const row = Math.floor((event.offsetY / $("overview").clientHeight) * shown.layers.length);
  $("layer").selectedIndex = Math.max(0, Math.min(shown.layers.length - 1, row));
  draw();
});
$("player").addEventListener("timeupdate", drawCursor);
window.addEventListener("resize", draw);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) listen(file);
});
describe().catch((error) => say(error.message, true));
