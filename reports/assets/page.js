"use strict";
// What a page can do beside being read: tables sort, commands are copied. Without it nothing is missing.

document.documentElement.classList.add("scripts");

const UNITS = { "µs": 0.001, ms: 1, s: 1000, "%": 1 };

// A cell's value to sort by: a number in one unit, or text; nothing for what is missing.
function cellValue(cell) {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll(".interval, .aside, .bar").forEach((part) => part.remove());
  const text = copy.textContent.trim().replaceAll("−", "-").replaceAll(",", "");
  const found = text.match(/^[+×≥≤ ]*(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(\S*)/);
  if (!cell.classList.contains("number")) return text.toLowerCase();
  return found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : undefined;
}

function compareValues(a, b, direction) {
  if (a === undefined || b === undefined) return a === b ? 0 : a === undefined ? 1 : -1;
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return direction * order;
}

// Rows that belong together (a run and its simulated twin below it) stay together.
function sortTable(table, column, direction) {
  const body = table.tBodies[0];
  const blocks = [];
  for (const row of body.rows) {
    if (row.classList.contains("twin") && blocks.length) blocks[blocks.length - 1].push(row);
    else blocks.push([row]);
  }
  const keyed = blocks.map((rows) => [cellValue(rows[0].cells[column]), rows]);
  keyed.sort((a, b) => compareValues(a[0], b[0], direction));
  for (const [, rows] of keyed) body.append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  if (table.querySelector("tr.group") || table.tBodies[0].rows.length < 2) continue;
  if (table.querySelector("tbody [colspan]")) continue;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent || " ";
    if (!head.textContent) button.setAttribute("aria-label", "sort by this column");
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortTable(table, column, descending ? -1 : 1);
    });
  });
}

for (const block of document.querySelectorAll("pre")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.firstChild.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  block.append(button);
}

// What is folded is printed unfolded.
const folded = () => [...document.querySelectorAll("details:not([open])")];
let unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded = folded();
  unfolded.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => unfolded.forEach((part) => { part.open = false; }));
