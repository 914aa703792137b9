"use strict";
// The pages work without this file. It adds the keys, the number of selected images, and what happens meanwhile.
const picks = () => [...document.querySelectorAll(".pick")];
const chosen = () => picks().filter((pick) => pick.checked);
const matching = () => document.querySelector("#matching:checked"); // all images of all pages
const waits = () => "waits" in document.body.dataset; // a page of an error that a change may end

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const writes = event.target.closest("input:not(.pick), select, textarea");
  if (event.key === "Escape" && writes) { event.target.blur(); return; }
  if (writes) return;
  if (event.key === "Escape" && history.length > 1) history.back();
  if (event.key === "?") document.getElementById("key-help").showModal();
  if (event.key === "/") {
    const filter = document.querySelector(".filter");
    if (!filter) return;
    event.preventDefault();
    filter.open = true;
    document.getElementById("text").focus();
  }
  const tile = event.target.closest(".tile");
  const pick = tile && tile.closest(".cell")?.querySelector(".pick");
  if (event.key === " " && pick) { event.preventDefault(); pick.checked = !pick.checked; count(); }
  if (event.key === "a" || event.key === "x") send(event.key, pick);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(tile), ArrowDown: columns(tile) };
  if (!(event.key in steps) || (!tile && !document.querySelector(".tile"))) return;
  const tiles = [...document.querySelectorAll(".tile")];
  const next = tile ? tiles[tiles.indexOf(tile) + steps[event.key]] : (event.key === "ArrowRight" ? tiles[0] : null);
  if (next) { event.preventDefault(); next.focus(); }
});

// A key acts on the selection; without one, on the image that has the focus.
function send(key, pick) {
  const form = document.getElementById("chosen");
  const button = form && form.querySelector(`[data-key="${key}"]`);
  if (!button) return;
  if (pick && !chosen().length && !matching()) { pick.checked = true; count(); }
  if (!picks().length || chosen().length || matching()) form.requestSubmit(button);
}

function columns(tile) {
  const grid = tile && tile.closest(".grid");
  return grid ? getComputedStyle(grid).gridTemplateColumns.split(" ").length : 1;
}

function count() {
  const place = document.querySelector(".n-chosen");
  const n = matching() ? Number(matching().value) : chosen().length;
  if (place) place.textContent = n ? `${n.toLocaleString("en")} selected` : "";
  const all = document.getElementById("choose-all");
  if (!all) return;
  all.hidden = !picks().length;
  all.textContent = chosen().length < picks().length ? "Select this page" : "Select none";
}
document.addEventListener("click", (event) => {
  if (!event.target.matches("#choose-all")) return;
  const all = chosen().length < picks().length;
  for (const pick of picks()) pick.checked = all;
  count();
});
document.addEventListener("change", (event) => { if (event.target.matches(".pick, #matching")) count(); });

const show = document.getElementById("show-keys");
if (show) { show.hidden = false; show.addEventListener("click", () => document.getElementById("key-help").showModal()); }

// One stream, and only while the page is seen: a browser has few connections to a server.
let stream = null;
let step = null;
function follow() {
  if (document.visibilityState !== "visible" || !(document.body.dataset.version || waits())) {
    if (stream) stream.close();
    stream = null;
    return;
  }
  if (stream) return;
  stream = new EventSource("events");
  stream.addEventListener("step", (event) => { tell(JSON.parse(event.data)); });
  stream.addEventListener("version", (event) => { compare(event.data); });
}

function tell(state) {
  const ended = step && step.is_running && !state.is_running;
  step = state;
  if (state.is_running || ended) draw(state);
  if (ended) refresh(state);
}

function draw(state) {
  const place = document.getElementById("step");
  if (!place) return;
  place.hidden = false;
  place.classList.toggle("failed", state.is_failed);
  place.querySelector("p").textContent = state.words;
  const bar = place.querySelector("progress");
  bar.hidden = !state.is_running;
  if (state.total) { bar.max = state.total; bar.value = state.done; } else bar.removeAttribute("value");
}

function compare(version) {
  if (waits() && version && version !== document.body.dataset.version) { location.reload(); return; }
  const changed = document.getElementById("changed");
  if (changed && version && !(step && step.is_running)) changed.hidden = version === document.body.dataset.version;
}

// At the end of a step the page shows the new state, unless somebody is in the middle of something.
async function refresh(state) {
  const active = document.activeElement;
  if (chosen().length || matching() || (active && active.matches("input, select, textarea")) || document.querySelector("canvas, dialog[open]")) {
    document.getElementById("changed").hidden = false;
    return;
  }
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...document.querySelectorAll("details")].map((one) => one.open);
  const focused = active && active.getAttribute("href");
  document.querySelector("main").replaceWith(page.querySelector("main"));
  document.body.dataset.version = page.body.dataset.version;
  document.querySelectorAll("details").forEach((one, at) => { one.open = open[at] || false; });
  if (focused) document.querySelector(`main a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  draw(state);
}
document.addEventListener("visibilitychange", follow);
window.addEventListener("pageshow", () => { follow(); count(); });
window.addEventListener("pagehide", () => { if (stream) stream.close(); stream = null; });
