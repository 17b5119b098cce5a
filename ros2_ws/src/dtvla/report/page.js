"use strict";
// Thoughts stand in the page as gzip in base64: they are many, and alike. They are unpacked when first asked for.
let unpacked = null;
function thoughts() {
  unpacked ??= (async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("thoughts").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  })();
  return unpacked;
}

function add(parent, tag, text, name) {
  const made = parent.appendChild(document.createElement(tag));
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

// One entry per thought: [step or null, how often it was thought in a row, words kept, words new, words kept, ...].
function list(entries, rate) {
  const view = document.createElement("ol");
  view.className = "thoughts";
  entries.forEach(([step, times, ...parts], place) => {
    const line = add(view, "li");
    const when = step === null ? `decision ${place + 1}` : `step ${step}`;
    add(line, "time", times > 1 ? `${when}, ${times} times` : when);
    const words = add(line, "span");
    parts.forEach((part, i) => { if (part) add(words, "span", part + " ", i % 2 || !place ? "" : "old"); });
    line.dataset.at = step === null ? "" : step / rate;
  });
  return view;
}

function follow(video, view) {
  const lines = [...view.children].filter((line) => line.dataset.at !== "");
  view.classList.add("film-there");
  video.addEventListener("timeupdate", () => {
    const now = lines.filter((line) => Number(line.dataset.at) <= video.currentTime + 0.01).pop();
    if (!now || now.classList.contains("now")) return;
    lines.forEach((line) => line.classList.toggle("now", line === now));
    view.scrollTop = now.offsetTop - view.offsetTop - 40;
  });
  lines.forEach((line) => line.addEventListener("click", () => { video.currentTime = Number(line.dataset.at); }));
}

async function open(row) {
  const more = document.createElement("tr");
  more.className = "more";
  const cell = add(more, "td");
  cell.colSpan = row.cells.length;
  row.after(more);
  let video = null;
  if (row.dataset.film) {
    const frame = add(cell, "div", undefined, "film");
    video = add(frame, "video");
    Object.assign(video, { src: row.dataset.film + "#t=0.01", controls: true, preload: "auto", muted: true });
    if (row.dataset.other) add(cell, "p", row.dataset.other, "warning");
  }
  if (row.dataset.error) add(cell, "p", row.dataset.error, "bad");
  try {
    const entries = (await thoughts())[row.dataset.key] || [];
    if (!entries.length) { add(cell, "p", "It said nothing.", "faint"); return; }
    const view = list(entries, Number(document.body.dataset.rate));
    cell.append(view);
    if (video) follow(video, view);
  } catch (error) {
    add(cell, "p", "This browser cannot unpack the thoughts; they stand in results.json.", "faint");
  }
}

function toggle(row) {
  const shown = row.getAttribute("aria-expanded") === "true";
  row.setAttribute("aria-expanded", String(!shown));
  if (shown) row.nextElementSibling.remove(); else open(row);
}

const rows = [...document.querySelectorAll("tr.row")];
rows.forEach((row) => {
  row.addEventListener("click", () => toggle(row));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(row); }
  });
});

const wanted = { kind: "all", task: "" };
function filter() {
  let left = 0;
  rows.forEach((row) => {
    const kind = wanted.kind === "all" || (wanted.kind === "film" ? row.dataset.film : row.dataset.kind === wanted.kind);
    const seen = Boolean(kind) && (!wanted.task || row.dataset.task === wanted.task);
    if (!seen && row.getAttribute("aria-expanded") === "true") toggle(row);
    row.hidden = !seen;
    left += seen;
  });
  document.getElementById("left").textContent = `${left} of ${rows.length}`;
}
document.querySelectorAll(".filters button").forEach((button) => button.addEventListener("click", () => {
  wanted.kind = button.dataset.kind;
  document.querySelectorAll(".filters button").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
  filter();
}));
document.querySelector(".filters select").addEventListener("change", (event) => { wanted.task = event.target.value; filter(); });
filter();
// The page opens where there is most to see: #task0_seed10000, or the first failure with a video.
const first = rows.find((row) => "#" + row.dataset.key === location.hash) || rows.find((row) => row.dataset.film);
if (first) toggle(first);
