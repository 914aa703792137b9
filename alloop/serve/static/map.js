"use strict";
// The map: the server sends points, the table beside the map says what their colors mean, d3 zooms and finds points.
const canvas = document.getElementById("map");
const making = document.querySelector("#making progress:not([hidden])");
const trouble = () => { document.getElementById("trouble").hidden = false; };
if (canvas) showMap().catch(trouble);
if (making) watch().catch(trouble);

async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok || answer.redirected) throw new Error(address);
  return answer;
}

async function watch() {
  const state = await (await load("map/progress")).json();
  if (!state.is_under_way) { location.reload(); return; }
  document.querySelector("#making [role=status]").textContent = state.says;
  if (state.share === null) making.removeAttribute("value"); else making.value = state.share;
  setTimeout(() => watch().catch(trouble), 1000);
}

async function showMap() {
  const CORNERS = 64, NEAR = 14, FINGER = 24, EDGE = 0.94;
  const context = canvas.getContext("2d");
  const card = document.getElementById("near");
  const given = (canvas.dataset.area || "").split(",").slice(1).map(Number);
  const area = given.filter((_, at) => at % 2 === 0).map((x, at) => [x, given[2 * at + 1]]);
  const names = [...document.querySelectorAll("#names li")].map((one) => ({ words: one.textContent, x: +one.dataset.x, y: +one.dataset.y }));
  const { id, x, y, code, labeled, placed } = await (await load(canvas.dataset.points)).json();
  const tree = d3.quadtree().x((at) => x[at]).y((at) => y[at]).addAll(id.keys());
  const layers = layersOf(code, labeled);
  const small = id.length > 8000 ? 1.7 : id.length > 2500 ? 2.6 : 4;
  let view = d3.zoomIdentity, width = 1, height = 1, scale = 1, shown = -1, path = null, isDrawing = false, colors, isDue = false, timer;

  const screen = (a, b) => view.apply([width / 2 + a * scale, height / 2 - b * scale]);
  const inverse = ([left, top]) => { const [a, b] = view.invert([left, top]); return [(a - width / 2) / scale, (height / 2 - b) / scale]; };
  const find = (place, pixels) => { const at = tree.find(...inverse(place), pixels / scale / view.k); return at === undefined ? -1 : at; };

  // -- drawing ---------------------------------------------------------------------------------------------------------

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    colors = Object.fromEntries(["panel", "ink", "edge", "accent"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
    for (const dot of document.querySelectorAll("[data-code] circle")) colors[dot.closest("[data-code]").dataset.code] = getComputedStyle(dot).fill;
    draw();
  }

  function draw() {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => { isDue = false; paint(); });
  }

  function paint() {
    const ratio = devicePixelRatio, radius = Math.min(7, small * Math.sqrt(view.k));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    for (const layer of layers) {
      context.fillStyle = colors[layer.code];
      context.strokeStyle = layer.isLabeled ? colors.ink : colors.edge;
      context.lineWidth = layer.isLabeled ? 1.4 : 0.7;
      for (const at of layer.points) {
        const [left, top] = screen(x[at], y[at]);
        if (left < -9 || top < -9 || left > width + 9 || top > height + 9) continue;
        context.beginPath();
        if (placed[at]) diamond(left, top, radius * 1.5); else context.arc(left, top, radius, 0, 2 * Math.PI);
        context.fill();
        if (layer.isLabeled || radius > 2) context.stroke();
      }
    }
    outline(area, true);
    if (path) outline(path, false);
    if (shown >= 0) ring(...screen(x[shown], y[shown]), radius + 4);
    context.font = "600 13px system-ui, sans-serif";
    context.textAlign = "center";
    for (const name of names) write(name.words, ...screen(1000 * name.x, 1000 * name.y));
  }

  function diamond(left, top, radius) {
    for (const [a, b] of [[0, -1], [1, 0], [0, 1], [-1, 0]]) context.lineTo(left + a * radius, top + b * radius);
    context.closePath();
  }

  function outline(corners, isClosed) {
    if (corners.length < 2) return;
    context.beginPath();
    for (const [a, b] of corners) context.lineTo(...screen(a, b));
    if (isClosed) context.closePath();
    context.setLineDash([6, 4]);
    context.lineWidth = 2;
    context.strokeStyle = colors.ink;
    context.stroke();
    context.setLineDash([]);
  }

  function ring(left, top, radius) {
    context.beginPath();
    context.arc(left, top, radius, 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = colors.accent;
    context.stroke();
  }

  function write(words, left, top) {
    context.lineWidth = 4;
    context.strokeStyle = colors.panel;
    context.strokeText(words, left, top);
    context.fillStyle = colors.ink;
    context.fillText(words, left, top);
  }

  // -- one point -------------------------------------------------------------------------------------------------------

  function show(at) {
    if (at === shown) return;
    shown = at;
    clearTimeout(timer);
    if (at < 0) card.hidden = true; else timer = setTimeout(() => fill(at).catch(trouble), 60);
    draw();
  }

  async function fill(at) {
    const text = await (await load(`tile?id=${id[at]}`)).text();
    if (shown !== at) return;
    card.innerHTML = text; // the same part as in a grid; the server escapes every name
    card.hidden = false;
    const [left, top] = screen(x[at], y[at]);
    card.style.left = `${Math.max(0, Math.min(left + 14, width - card.offsetWidth))}px`;
    card.style.top = `${Math.max(0, top + 14 + card.offsetHeight > height ? top - 14 - card.offsetHeight : top + 14)}px`;
  }

  const open = (at) => { if (at >= 0) location.assign(`image?id=${id[at]}`); };

  // -- zoom, hover and areas -------------------------------------------------------------------------------------------

  const takes = (event) => isDrawing || event.shiftKey;
  const isMouse = (event) => event.pointerType !== "touch";
  const zoom = d3.zoom().scaleExtent([0.8, 60]).filter((event) => !takes(event) && !event.button).on("zoom", (event) => {
    view = event.transform;
    card.hidden = true;
    draw();
  }).on("end", () => history.replaceState(null, "", hash()));
  const target = d3.select(canvas).call(zoom);
  const hash = () => `#${[view.k, view.x / width, view.y / height].map((one) => one.toFixed(3))}`;

  canvas.addEventListener("pointerdown", (event) => {
    if (!takes(event) || event.button) return;
    if (!event.isPrimary) { path = null; draw(); return; } // a second finger gives the area up
    canvas.setPointerCapture(event.pointerId);
    path = [inverse(d3.pointer(event))];
  });
  canvas.addEventListener("pointermove", (event) => {
    const place = d3.pointer(event);
    if (path && event.isPrimary) { path.push(inverse(place)); draw(); } else if (!path && isMouse(event) && !event.buttons) show(find(place, NEAR));
  });
  canvas.addEventListener("pointerup", () => { const drawn = path; path = null; if (drawn && drawn.length > 2) select(drawn); });
  canvas.addEventListener("pointercancel", () => { path = null; draw(); });
  canvas.addEventListener("pointerleave", (event) => { if (!path && isMouse(event)) show(-1); }); // a finger leaves after every tap
  canvas.addEventListener("click", (event) => {
    if (takes(event)) return;
    const at = find(d3.pointer(event), isMouse(event) ? NEAR : FINGER);
    if (at >= 0 && at === shown && (isMouse(event) || !card.hidden)) open(at); else { shown = -1; show(at); } // a finger shows first
  });

  function select(corners) {
    const step = Math.ceil(corners.length / CORNERS);
    const kept = corners.filter((_, at) => at % step === 0).flat().map((one) => Math.round(Math.max(-1500, Math.min(1500, one))));
    const address = new URL(location.href);
    address.searchParams.set("area", [canvas.dataset.map, ...kept].join(","));
    location.assign(address);
  }

  function draws(is) {
    isDrawing = is;
    path = null;
    canvas.classList.toggle("draws", is);
    document.querySelector("[data-does=draw]").setAttribute("aria-pressed", is);
    draw();
  }

  const does = {
    in: () => target.call(zoom.scaleBy, 1.4),
    out: () => target.call(zoom.scaleBy, 1 / 1.4),
    whole: () => target.call(zoom.transform, d3.zoomIdentity),
    draw: () => draws(!isDrawing),
    take: () => select([[0, 0], [width, 0], [width, height], [0, height]].map(inverse)),
  };
  const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const keys = { "+": "in", "=": "in", "-": "out", 0: "whole", d: "draw", t: "take" };
  for (const button of document.querySelectorAll("[data-does]")) button.addEventListener("click", does[button.dataset.does]);
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = moves[event.key];
    if (event.key === "Enter") open(shown);
    else if (event.key === "Escape" && (isDrawing || shown >= 0)) { draws(false); show(-1); }
    else if (step) target.call(zoom.translateBy, step[0] * width / 8 / view.k, step[1] * height / 8 / view.k);
    else if (keys[event.key]) does[keys[event.key]]();
    else return;
    if (step || ["in", "out"].includes(keys[event.key])) show(find([width / 2, height / 2], Math.max(width, height)));
    event.preventDefault();
    event.stopPropagation();
  });
  for (const link of document.querySelectorAll(".colors a")) link.addEventListener("click", () => { link.hash = hash(); });

  new ResizeObserver(() => {
    const before = width;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
    scale = (EDGE * Math.min(width, height)) / 2000;
    const [k, a, b] = location.hash.slice(1).split(",").map(Number);
    if (before === 1 && k > 0 && Number.isFinite(a + b)) target.call(zoom.transform, d3.zoomIdentity.translate(a * width, b * height).scale(k));
    if (colors) draw(); else readColors();
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColors);
}

// Points of one color together, the gray ones first, labeled ones last: they are few, and must be seen.
function layersOf(code, labeled) {
  const layers = new Map();
  for (let at = 0; at < code.length; at++) {
    const key = labeled[at] * 100 - code[at];
    if (!layers.has(key)) layers.set(key, { code: code[at], isLabeled: labeled[at] === 1, points: [] });
    layers.get(key).points.push(at);
  }
  return [...layers.entries()].sort((a, b) => a[0] - b[0]).map(([, layer]) => layer);
}
