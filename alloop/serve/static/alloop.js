"use strict";
// The pages work without this file. It adds the keys: arrows move in a grid, "/" goes to the filter, Esc goes back.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writes = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && writes) { event.target.blur(); return; }
  if (writes) return;
  if (event.key === "Escape" && history.length > 1) history.back();
  if (event.key === "/") {
    const filter = document.querySelector(".filter");
    if (!filter) return;
    event.preventDefault();
    filter.open = true;
    document.getElementById("text").focus();
  }
  const tile = event.target.closest(".tile");
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(tile), ArrowDown: columns(tile) };
  if (!(event.key in steps) || (!tile && !document.querySelector(".tile"))) return;
  const tiles = [...document.querySelectorAll(".tile")];
  const next = tile ? tiles[tiles.indexOf(tile) + steps[event.key]] : (event.key === "ArrowRight" ? tiles[0] : null);
  if (next) { event.preventDefault(); next.focus(); }
});

function columns(tile) {
  const grid = tile && tile.closest(".grid");
  return grid ? getComputedStyle(grid).gridTemplateColumns.split(" ").length : 1;
}
