"use strict";
// Requests one by one, as lanes or as lengths, on a canvas: thousands of them, filtered, ordered, zoomed.

for (const card of document.querySelectorAll(".card.lanes")) {
  const runs = JSON.parse(card.querySelector("script[type='application/json']").textContent);
  const canvas = card.querySelector("canvas");
  const context = canvas.getContext("2d");
  const tip = card.querySelector(".tip");
  const storyLine = card.querySelector(".story");
  const shownLine = card.querySelector(".shown");
  const control = (name) => card.querySelector(`[data-control=${name}]`);
  const [QUEUED, PREFILL, DECODE, COHORT, OTHERS, PREEMPTED, SERVED] = [0, 1, 2, 3, 4, 5, 6];
  const LEFT = 56, RIGHT = 10, TOP = 8, FOOT = 30, NO = -1;
  const state = { run: null, from: 0, to: 1, list: [], visible: [], chosen: null, rowHeight: 1, scale: null };

  for (const run of runs) {
    run.requests = run.requests.map(
      ([id, input, output, start, steps, preemptions, recomputed, outcome, ttft, spent, flat]) => {
        const pieces = [];
        let tokens = 0;
        for (let i = 0; i < flat.length; i += 3) {
          tokens += flat[i + 2];
          pieces.push({ state: flat[i], end: start + flat[i + 1], tokens });
        }
        const end = pieces.length ? pieces[pieces.length - 1].end : start;
        const admitted = pieces.length && pieces[0].state === QUEUED ? pieces[0].end : start;
        return { id, admitted, input, output, start, end, steps, preemptions, recomputed, outcome, ttft, spent, pieces };
      },
    );
  }

  // -- what is shown

  const number = (name, otherwise) => {
    const text = control(name).value;
    return text === "" ? otherwise : Number(text);
  };
  const orders = {
    arrival: (a, b) => a.start - b.start,
    wait: (a, b) => b.spent[QUEUED] - a.spent[QUEUED],
    e2e: (a, b) => b.end - b.start - (a.end - a.start),
    input: (a, b) => b.input - a.input,
    output: (a, b) => b.output - a.output,
  };

  function filter() {
    const [inputLeast, inputMost] = [number("input-least", 0), number("input-most", Infinity)];
    const [outputLeast, outputMost] = [number("output-least", 0), number("output-most", Infinity)];
    state.list = state.run.requests.filter(
      (one) => one.input >= inputLeast && one.input <= inputMost && one.output >= outputLeast && one.output <= outputMost,
    );
    state.list.sort(orders[control("order").value]);
    const lanes = control("view").value === "lanes" ? state.list.length : Infinity;
    canvas.style.height = `${Math.max(140, Math.min(window.innerWidth > 640 ? 440 : 360, TOP + FOOT + 19 * lanes))}px`;
    draw();
  }

  function choose(run) {
    state.run = run;
    state.from = 0;
    state.to = Math.max(1, run.end);
    state.chosen = null;
    storyLine.textContent = "Choose a request to keep its story here.";
    filter();
  }

  function seconds(units) {
    const value = units * state.run.unit_s;
    if (value === 0) return "0 s";
    if (value < 0.001) return `${(value * 1e6).toPrecision(3)} µs`;
    if (value < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
    return `${value >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3))} s`;
  }

  function story(one) {
    const [queued, prefill, decode, cohort, others, preempted, served] = one.spent.map(seconds);
    const parts = [`queued ${queued}`];
    if (one.spent[PREFILL]) parts.push(`prefilled ${prefill}`);
    if (one.spent[DECODE]) parts.push(`decoded ${decode} in ${one.steps.toLocaleString("en")} steps`);
    if (one.spent[COHORT]) parts.push(`waited ${cohort} for its cohort`);
    if (one.spent[OTHERS]) parts.push(`waited ${others} while others were prefilled`);
    if (one.preemptions) {
      const again = one.recomputed ? `, ${one.recomputed.toLocaleString("en")} tokens computed again` : "";
      const time = one.spent[PREEMPTED] ? `${preempted}` : "time not known";
      parts.push(`preempted ${one.preemptions} × (${time}${again})`);
    }
    if (one.spent[SERVED]) parts.push(`served ${served}`);
    const ttft = one.ttft === NO ? "" : `TTFT ${seconds(one.ttft)}, `;
    const outcome = one.outcome ? `${one.outcome}, ` : "";
    return {
      head: `${one.id}: ${one.input.toLocaleString("en")} tokens in, ${one.output.toLocaleString("en")} out`,
      body: `Arrived at ${seconds(one.start)}; ${parts.join(", ")}. ${outcome}${ttft}E2E ${seconds(one.end - one.start)}.`,
    };
  }

  // -- drawing

  let colours = [];
  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    colours = Array.from({ length: 7 }, (_, i) => of(`--state-${i}`));
    Object.assign(colours, { ink: of("--ink"), muted: of("--muted"), line: of("--line") });
  }

  function niceTicks(from, to, most) {
    const rough = (to - from) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
    const ticks = [];
    for (let tick = Math.ceil(from / step) * step; tick <= to + step * 1e-6; tick += step) ticks.push(tick);
    return ticks;
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    readColours();
    const queued = !control("admitted").checked;
    state.visible = state.list.filter((one) => one.end >= state.from && (queued ? one.start : one.admitted) <= state.to);
    state.scale = (width - LEFT - RIGHT) / (state.to - state.from);
    drawTimes(width, height);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT - RIGHT, height - FOOT + 2);
    context.clip();
    if (control("view").value === "lengths") drawLengths(height);
    else drawLanes(height);
    context.restore();
    const filtered = state.list.length < state.run.requests.length ? ` (${state.list.length} pass the filter)` : "";
    shownLine.textContent = `${state.visible.length} of ${state.run.requests.length} requests${filtered}`;
    card.dataset.shown = state.visible.length;
    card.classList.add("live");
  }

  const x = (time) => LEFT + (time - state.from) * state.scale;

  function drawTimes(width, height) {
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = colours.muted;
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.textAlign = "center";
    const unit = state.run.unit_s;
    const ticks = niceTicks(state.from * unit, state.to * unit, Math.max(3, width / 110));
    const digits = Math.max(0, -Math.floor(Math.log10(ticks.length > 1 ? ticks[1] - ticks[0] : 1) + 1e-9));
    for (const tick of ticks) {
      const place = Math.round(x(tick / unit)) + 0.5;
      context.beginPath();
      context.moveTo(place, TOP);
      context.lineTo(place, height - FOOT);
      context.stroke();
      const last = tick === ticks[ticks.length - 1];
      context.fillText(`${tick.toLocaleString("en", { minimumFractionDigits: digits })}${last ? " s" : ""}`,
        Math.min(place, width - 26), height - FOOT + 18);
    }
  }

  function drawLanes(height) {
    const room = height - TOP - FOOT;
    const count = Math.max(1, state.visible.length);
    state.rowHeight = Math.min(18, room / count);
    const thick = Math.max(1, state.rowHeight * (state.rowHeight > 3 ? 0.72 : 1));
    state.visible.forEach((one, row) => {
      const top = TOP + row * state.rowHeight;
      let start = one.start;
      for (const piece of one.pieces) {
        const from = x(Math.max(start, state.from)), to = x(Math.min(piece.end, state.to));
        if (to >= from) {
          const thin = piece.state === QUEUED && state.rowHeight > 3;
          context.fillStyle = colours[piece.state];
          context.fillRect(from, thin ? top + thick * 0.3 : top, Math.max(to - from, 0.6), thin ? thick * 0.4 : thick);
        }
        start = piece.end;
      }
      if (one === state.chosen) {
        context.strokeStyle = colours.ink;
        context.lineWidth = 1.5;
        context.strokeRect(x(one.start) - 2, top - 1.5, (one.end - one.start) * state.scale + 4, thick + 3);
      }
    });
    context.restore();
    context.save();
    context.fillStyle = colours.muted;
    context.textAlign = "right";
    if (state.rowHeight >= 11) {
      state.visible.forEach((one, row) => {
        context.fillText(one.id.slice(0, 8), LEFT - 6, TOP + row * state.rowHeight + thick * 0.5 + 4);
      });
    }
  }

  function lengthScale(height) {
    let most = 1;
    for (const one of state.visible) most = Math.max(most, one.input + one.output);
    return (tokens) => height - FOOT - (tokens / most) * (height - TOP - FOOT - 6);
  }

  function points(one) {
    const found = [];
    let [tokens, time] = [one.input, one.start];
    for (const piece of one.pieces) {
      if (piece.state !== QUEUED) found.push({ state: piece.state, x0: time, y0: tokens, x1: piece.end, y1: piece.tokens });
      [tokens, time] = [piece.tokens, piece.end];
    }
    return found;
  }

  function drawLengths(height) {
    const y = lengthScale(height);
    const faint = state.visible.length > 300 ? 0.45 : 0.9;
    for (const one of state.visible) {
      for (const part of points(one)) {
        if (part.x1 < state.from || part.x0 > state.to) continue;
        context.globalAlpha = one === state.chosen ? 1 : faint;
        context.strokeStyle = colours[part.state];
        context.lineWidth = one === state.chosen ? 3 : 1.2;
        context.beginPath();
        context.moveTo(x(part.x0), y(part.y0));
        context.lineTo(x(part.x1), y(part.y1));
        context.stroke();
      }
    }
    context.globalAlpha = 1;
    let most = 1;
    for (const one of state.visible) most = Math.max(most, one.input + one.output);
    context.restore();
    context.save();
    context.fillStyle = colours.muted;
    context.textAlign = "right";
    for (const tick of niceTicks(0, most, 5)) context.fillText(tick.toLocaleString("en"), LEFT - 6, y(tick) + 4);
  }

  // -- pointing

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    if (control("view").value === "lanes") {
      return state.visible[Math.floor((top - TOP) / state.rowHeight)];
    }
    const y = lengthScale(canvas.clientHeight);
    let best, least = 12;
    for (const one of state.visible) {
      for (const part of points(one)) {
        const [x0, x1] = [x(part.x0), x(part.x1)];
        if (left < x0 - 6 || left > x1 + 6) continue;
        const share = x1 > x0 ? Math.min(1, Math.max(0, (left - x0) / (x1 - x0))) : 0;
        const distance = Math.abs(y(part.y0 + share * (part.y1 - part.y0)) - top);
        if (distance < least) [best, least] = [one, distance];
      }
    }
    return best;
  }

  function showTip(one, event) {
    tip.hidden = !one;
    if (!one) return;
    const { head, body } = story(one);
    const title = document.createElement("strong");
    title.textContent = head;
    tip.replaceChildren(title, document.createElement("br"), body);
    const box = canvas.getBoundingClientRect();
    const left = event.clientX - box.left;
    tip.style.left = `${Math.max(0, Math.min(left + 14, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY - box.top + 18}px`;
  }

  function select(one) {
    state.chosen = one;
    if (one) {
      const { head, body } = story(one);
      storyLine.textContent = `${head}. ${body}`;
    }
    draw();
  }

  function zoom(factor, centre) {
    const middle = centre ?? (state.chosen ? (state.chosen.start + state.chosen.end) / 2 : (state.from + state.to) / 2);
    const whole = Math.max(1, state.run.end);
    const span = Math.min(whole, Math.max(whole / 1e5, (state.to - state.from) * factor));
    const share = (Math.min(state.to, Math.max(state.from, middle)) - state.from) / (state.to - state.from);
    move(middle - share * span, span);
  }

  function move(from, span) {
    const whole = Math.max(1, state.run.end);
    state.from = Math.max(0, Math.min(whole - span, from));
    state.to = state.from + span;
    draw();
  }

  const time = (event) => state.from + (event.clientX - canvas.getBoundingClientRect().left - LEFT) / state.scale;
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, from: state.from, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return showTip(at(event), event);
    drag.moved ||= Math.abs(event.clientX - drag.x) > 3;
    if (drag.moved) move(drag.from - (event.clientX - drag.x) / state.scale, state.to - state.from);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) select(at(event) ?? null);
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, time(event)));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, time(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const span = state.to - state.from;
    const row = state.visible.indexOf(state.chosen);
    const keys = {
      ArrowLeft: () => move(state.from - span / 10, span),
      ArrowRight: () => move(state.from + span / 10, span),
      ArrowUp: () => select(state.visible[Math.max(0, row - 1)] ?? null),
      ArrowDown: () => select(state.visible[Math.min(state.visible.length - 1, row + 1)] ?? null),
      "+": () => zoom(0.5),
      "-": () => zoom(2),
      Home: () => move(0, Math.max(1, state.run.end)),
    };
    const act = keys[event.key === "=" ? "+" : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  for (const button of card.querySelectorAll("[data-zoom]")) {
    const acts = { in: () => zoom(0.5), out: () => zoom(2), reset: () => move(0, Math.max(1, state.run.end)) };
    button.addEventListener("click", acts[button.dataset.zoom]);
  }
  for (const field of card.querySelectorAll("[data-control]")) {
    if (field.dataset.control === "run") field.addEventListener("change", () => choose(runs[Number(field.value)]));
    else field.addEventListener("input", filter);
  }
  new ResizeObserver(draw).observe(canvas);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) window.matchMedia(query).addEventListener("change", draw);
  choose(runs[0]);
}
