"use strict";
// Interactive charts, drawn by Vega over the still ones. Where Vega cannot be unpacked or drawn, the still ones stay.

const AXIS = {
  labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)", domainColor: "var(--line)",
  tickColor: "var(--line)", labelFont: "system-ui, sans-serif", titleFont: "system-ui, sans-serif", labelFontSize: 12,
  titleFontSize: 12, titleFontWeight: "normal", titlePadding: 6, grid: true, gridWidth: 0.7, tickSize: 4,
  labelOverlap: "greedy", labelSeparation: 10,
};
const WIDTH = {
  name: "width", init: "max(120, containerSize()[0])",
  on: [{ events: "window:resize", update: "max(120, containerSize()[0])" }],
};
const HOVER = [
  {
    type: "path", name: "cell", from: { data: "dots" },
    encode: { update: { path: { field: "path" }, fill: { value: "transparent" }, tooltip: { signal: "datum.datum" } } },
    transform: [{
      type: "voronoi", x: { expr: "datum.x || 0" }, y: { expr: "datum.y || 0" },
      size: [{ signal: "width" }, { signal: "height" }],
    }],
  },
  {
    type: "symbol", interactive: false,
    encode: {
      update: {
        x: { signal: "hover ? hover.x : -99" }, y: { signal: "hover ? hover.y : -99" }, size: { value: 70 },
        stroke: { signal: "hover ? hover.datum.stroke : null" }, fill: { value: "var(--card)" },
        strokeWidth: { value: 2 },
      },
    },
  },
];
const HOVERED = {
  name: "hover", value: null,
  on: [{ events: "@cell:pointerover", update: "datum" }, { events: "@cell:pointerout", update: "null" }],
};

function axes(xTitle, yTitle, yFormat) {
  return [
    { scale: "x", orient: "bottom", title: xTitle, tickCount: { signal: "max(3, width / 80)" }, ...AXIS,
      encode: { labels: { update: { text: { signal: "format(datum.value / xUnit, ',~r')" } } } } },
    { scale: "y", orient: "left", title: yTitle, tickCount: 5, ...AXIS,
      encode: { labels: { update: { text: { signal: yFormat } } } } },
  ];
}

const SPECS = {
  // {label, xs (ms), ys, stroke, dash}: the share of requests up to a latency
  cdf(data) {
    const points = data.series.flatMap((one, index) =>
      one.xs.map((x, i) => ({ index, x, y: one.ys[i], stroke: one.stroke, dash: one.dash, label: one.label })));
    const values = points.map((point) => point.x);
    const positive = values.filter((value) => value > 0);
    const [least, most] = [Math.min(...positive), Math.max(...values)];
    const log = most / least > 40;
    const unit = most >= 10000 ? 1000 : 1;
    const full = log ? [least * 0.9, most * 1.05] : [0, most * 1.02 || 1];
    const shown = log ? points.filter((point) => point.x > 0) : points;
    return {
      full,
      words: (datum) => [datum.label,
        `${(100 * datum.y).toFixed(1)} % of requests: at most ${figure(datum.x / unit)} ${unit === 1 ? "ms" : "s"}`],
      spec: {
        height: 240, signals: [WIDTH, { name: "domain", value: full }, { name: "xUnit", value: unit }, HOVERED],
        data: [{ name: "points", values: shown }],
        scales: [
          { name: "x", type: log ? "log" : "linear", domain: { signal: "domain" }, range: "width", zero: false },
          { name: "y", type: "linear", domain: [0, 1], range: "height" },
        ],
        axes: axes(unit === 1 ? "ms" : "s", null, "format(datum.value, '.0%')"),
        marks: [{
          type: "group", clip: true, encode: { update: { width: { signal: "width" }, height: { signal: "height" } } },
          marks: [
            {
              type: "group", from: { facet: { name: "line", data: "points", groupby: "index" } },
              marks: [{
                type: "line", from: { data: "line" },
                encode: {
                  update: {
                    x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" }, stroke: { field: "stroke" },
                    strokeDash: { field: "dash" }, strokeWidth: { value: 2 }, interpolate: { value: "step-after" },
                  },
                },
              }],
            },
            { type: "symbol", name: "dots", from: { data: "points" }, encode: { update: {
              x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" }, opacity: { value: 0 }, size: { value: 1 },
            } } },
            ...HOVER,
          ],
        }],
      },
    };
  },
  // {label, stroke, hollow, x, figures: {name: [value, low, high] (ms)}}: throughput against a latency
  spots(data, chosen) {
    const points = data.spots.filter((spot) => spot.figures[chosen]).map((spot) => {
      const [y, low, high] = spot.figures[chosen];
      return { ...spot, y, low: low ?? y, high: high ?? y, fill: spot.hollow ? "var(--card)" : spot.stroke };
    });
    const most = Math.max(...points.map((point) => point.high));
    const lowest = Math.min(...points.map((point) => point.low));
    const log = lowest > 0 && most / lowest > 40;
    const unit = most >= 10000 ? 1000 : 1;
    const xs = points.map((point) => point.x);
    const [least, greatest] = [Math.min(...xs), Math.max(...xs)];
    const margin = 0.06 * (greatest - least || greatest);
    const full = [data.joined ? Math.max(0, least - margin) : 0, greatest + margin];
    const [x, y] = [{ scale: "x", field: "x" }, { scale: "y", field: "y" }];
    const joined = { type: "line", from: { data: "points" },
      encode: { update: { x, y, stroke: { value: "var(--line)" }, strokeWidth: { value: 1.5 } } } };
    return {
      full,
      words: (datum) => [datum.label, `${figure(datum.x)} output tokens/s, ${chosen} ${figure(datum.y / unit)} `
        + `${unit === 1 ? "ms" : "s"}${datum.high > datum.low
          ? ` (${figure(datum.low / unit)} – ${figure(datum.high / unit)})` : ""}`],
      spec: {
        height: 300, signals: [WIDTH, { name: "domain", value: full }, { name: "xUnit", value: 1 }, HOVERED],
        data: [{ name: "points", values: points }],
        scales: [
          { name: "x", type: "linear", domain: { signal: "domain" }, range: "width", zero: false },
          { name: "y", type: log ? "log" : "linear", domain: log ? [lowest / 1.5, 1.5 * most] : [0, 1.06 * most || 1],
            range: "height" },
        ],
        axes: axes("output tokens/s", `${chosen}, ${unit === 1 ? "ms" : "s"}`, `format(datum.value / ${unit}, ',~r')`),
        marks: [{
          type: "group", clip: true, encode: { update: { width: { signal: "width" }, height: { signal: "height" } } },
          marks: [
            ...(data.joined ? [joined] : []),
            { type: "rule", from: { data: "points" }, encode: { update: { x,
              y: { scale: "y", field: "low" }, y2: { scale: "y", field: "high" }, stroke: { field: "stroke" },
              strokeWidth: { value: 2.5 }, opacity: { value: 0.45 } } } },
            { type: "symbol", name: "dots", from: { data: "points" }, encode: { update: { x, y,
              size: { value: data.joined ? 60 : 110 }, fill: { field: "fill" }, stroke: { field: "stroke" },
              strokeWidth: { value: 2 } } } },
            ...HOVER,
          ],
        }],
      },
    };
  },
};

function figure(value) {
  return value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

async function unpackVega() {
  const packed = document.getElementById("vega").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function drawChart(card, data, chosen) {
  const { spec, full, words } = SPECS[card.dataset.vega](data, chosen);
  const place = card.querySelector(".drawn") ?? document.createElement("div");
  place.className = "drawn";
  place.replaceChildren();
  card.append(place);
  card.classList.add("live");
  const plot = document.createElement("div");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  place.append(plot, tip);
  const whole = { padding: 4, autosize: { type: "fit", contains: "padding" }, background: null, ...spec };
  const view = new vega.View(vega.parse(whole), { renderer: "svg", container: plot, hover: true });
  view.tooltip((handler, event, item, datum) => {
    tip.hidden = !datum;
    if (!datum) return;
    const [head, body] = words(datum);
    const title = document.createElement("strong");
    title.textContent = head;
    tip.replaceChildren(title, document.createElement("br"), body);
    const box = place.getBoundingClientRect();
    const left = event.clientX - box.left;
    tip.style.left = `${Math.max(0, Math.min(left + 14, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  });
  await view.runAsync();
  const svg = plot.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", card.querySelector(".still svg")?.getAttribute("aria-label") ?? "");
  zoomable(place, view, full);
  return view;
}

// A drag along the x axis zooms in on it, a double click shows all again.
function zoomable(place, view, full) {
  const brush = document.createElement("div");
  brush.className = "brush";
  brush.hidden = true;
  place.append(brush);
  let start = null;
  const at = (event) => event.clientX - place.getBoundingClientRect().left;
  const plot = place.firstChild;
  plot.addEventListener("pointerdown", (event) => { start = at(event); });
  window.addEventListener("pointermove", (event) => {
    if (start === null || Math.abs(at(event) - start) < 4) return;
    brush.hidden = false;
    brush.style.left = `${Math.min(start, at(event))}px`;
    brush.style.width = `${Math.abs(at(event) - start)}px`;
  });
  window.addEventListener("pointerup", (event) => {
    if (start !== null && !brush.hidden) {
      const invert = (left) => view.scale("x").invert(Math.max(0, Math.min(view.width(), left - view.origin()[0])));
      const ends = [invert(start), invert(at(event))].sort((a, b) => a - b);
      if (ends[1] > ends[0]) view.signal("domain", ends).runAsync();
    }
    start = null;
    brush.hidden = true;
  });
  plot.addEventListener("dblclick", () => view.signal("domain", full).runAsync());
}

(async () => {
  const cards = [...document.querySelectorAll("[data-vega]")];
  if (!cards.length || typeof DecompressionStream === "undefined") return;
  await unpackVega();
  for (const card of cards) {
    const data = JSON.parse(card.querySelector("script[type='application/json']").textContent);
    const choice = card.querySelector("select");
    let view = await drawChart(card, data, choice?.value);
    choice?.addEventListener("change", async () => {
      view.finalize();
      view = await drawChart(card, data, choice.value);
    });
  }
  document.documentElement.dataset.charts = "drawn";
})();
