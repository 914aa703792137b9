"use strict";
// The report is complete without this script. It sorts a table by the column whose title is clicked.
for (const table of document.querySelectorAll("table:not(.matrix)")) {
  const titles = table.tHead ? [...table.tHead.rows[0].cells] : [];
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 2) continue;
  titles.forEach((title, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") === "ascending";
      for (const each of titles) each.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = rows.map((row) => [value(row.cells[at].textContent.trim()), row]).sort((a, b) => order(a[0], b[0]));
      table.tBodies[0].append(...(down ? sorted.reverse() : sorted).map((pair) => pair[1]));
    });
  });
}

// A number for what begins with one, else the text.
function value(text) {
  const number = parseFloat(text.replace("−", "-").replaceAll(",", ""));
  return Number.isNaN(number) ? text : number;
}

function order(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : Number(a > b);
  return typeof a === "number" ? 1 : -1;
}
