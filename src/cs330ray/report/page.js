// Draws every figure of the page in its theme, and a figure's numbers as a table when they are asked for.
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const [ink, soft, line] = [of("--ink"), of("--soft"), of("--line")];
  const words = { labelColor: soft, titleColor: ink };
  return {
    background: "transparent", view: { stroke: line }, title: { color: ink }, text: { color: ink },
    axis: { ...words, gridColor: line, domainColor: line, tickColor: line }, legend: words,
  };
}

async function draw() {
  for (const [name, spec] of Object.entries(figures)) {
    const options = { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "svg" };
    const config = { ...spec.config, ...theme() };
    await vegaEmbed(document.getElementById("figure-" + name), { ...spec, config }, options);
  }
  document.body.dataset.drawn = Object.keys(figures).length;
}

function numbers(spec) {
  return spec.data.values ?? spec.datasets[spec.data.name];
}

function cell(value, kind) {
  const made = document.createElement(kind);
  const number = typeof value === "number";
  made.textContent = value === null || value === undefined ? "" : number && !Number.isInteger(value) ? Number(value.toPrecision(5)) : String(value);
  made.className = number ? "number" : made.textContent.length > 36 ? "long" : "text";
  return made;
}

function fill(box, rows) {
  const table = document.createElement("table");
  const names = Object.keys(rows[0] ?? {});
  const head = table.createTHead().insertRow();
  names.forEach((name) => head.append(cell(name, "th")));
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    names.forEach((name) => line.append(cell(row[name], "td")));
  }
  box.append(table);
}

for (const box of document.querySelectorAll("details[data-of]")) {
  box.addEventListener("toggle", () => {
    const held = box.querySelector(".wide");
    if (box.open && !held.children.length) fill(held, numbers(figures[box.dataset.of]));
  });
}
dark.addEventListener("change", draw);
draw();
