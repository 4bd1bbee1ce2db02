"use strict";
(() => {
const SVG = "http://www.w3.org/2000/svg";
const words = JSON.parse(document.getElementById("words").textContent);
const key = "azllm:" + location.pathname;
let state = {};
try { state = JSON.parse(sessionStorage.getItem(key) || "{}"); } catch { /* no storage for this page */ }
const keep = (name, value) => {
  state[name] = value;
  try { sessionStorage.setItem(key, JSON.stringify(state)); } catch { /* then a reload starts anew */ }
};

// Values under the pointer, at the same place of every chart with the same axis.
const format = value => {
  if (value === null) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(3);
  if (size >= 1000) return value.toLocaleString("en-US", {maximumFractionDigits: 0});
  return Number.isInteger(value) ? String(value) : value.toFixed(4);
};
const place = (axis, x) => axis === "step" ? `${words.step} ${Math.round(x).toLocaleString("en-US")}`
  : axis === "tokens" ? `${Math.round(x).toLocaleString("en-US")} ${words.tokens}` : `${x.toFixed(1)} ${words.minutes}`;
const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
};
const node = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [at, value] of Object.entries(attributes)) made.setAttribute(at, value);
  return made;
};
const figures = [...document.querySelectorAll("figure")].map(figure => ({
  figure, data: JSON.parse(figure.querySelector("script").textContent), tip: figure.querySelector(".tip"),
}));
const drawingOf = figure => [...figure.querySelectorAll(".drawing")].find(drawing => drawing.offsetParent !== null);
const clear = () => {
  document.querySelectorAll(".pointer").forEach(group => group.remove());
  figures.forEach(({tip}) => { tip.hidden = true; });
};
const show = (x, shown) => {
  clear();
  for (const item of figures) {
    if (item.data.axis !== shown.data.axis) continue;
    const drawing = drawingOf(item.figure);
    if (!drawing) continue;
    const [x0, kx, y0, ky, top, bottom] = JSON.parse(drawing.dataset.map);
    const group = node("g", {class: "pointer"});
    group.append(node("line", {class: "cursor", x1: x0 + kx * x, x2: x0 + kx * x, y1: top, y2: bottom}));
    const rows = [];
    for (const line of item.data.lines) {
      if (!line.x.length || x < line.x[0] - 1e-9 && item !== shown) continue;
      const i = nearest(line.x, x), value = line.y[i];
      const height = value === null ? NaN : y0 + ky * (item.data.log ? Math.log10(value) : value);
      if (height >= top - 1 && height <= bottom + 1)
        group.append(node("circle", {class: `point ${line.style}`, cx: x0 + kx * line.x[i], cy: height, r: 4}));
      const row = document.createElement("span"), name = document.createElement("b");
      row.className = line.style;
      name.style.fontWeight = 400;
      name.append(document.createElement("i"), line.name);
      row.append(name, format(value));
      rows.push(row);
    }
    drawing.querySelector("svg").append(group);
    if (item !== shown) continue;
    const box = drawing.getBoundingClientRect(), outer = item.figure.getBoundingClientRect();
    const scale = box.width / drawing.querySelector("svg").viewBox.baseVal.width;
    const head = document.createElement("strong");
    head.textContent = place(item.data.axis, x);
    const near = item.data.flags.filter(flag => Math.abs(kx * (flag.x - x)) < 9).map(flag => {
      const text = document.createElement("em");
      text.textContent = `${flag.n} ${flag.title}`;
      return text;
    });
    item.tip.replaceChildren(head, ...rows, ...near);
    item.tip.hidden = false;
    const at = (x0 + kx * x) * scale + box.left - outer.left, width = item.tip.offsetWidth;
    const left = at + width + 18 > outer.width ? at - width - 14 : at + 14;
    item.tip.style.left = `${Math.max(0, left)}px`;
    item.tip.style.top = `${box.top - outer.top + top * scale + 4}px`;
  }
};
for (const item of figures) {
  const longest = item.data.lines.reduce((a, b) => b.x.length > a.length ? b.x : a, []);
  let index = longest.length - 1;
  const point = event => {
    const drawing = drawingOf(item.figure);
    if (!drawing || !longest.length) return;
    const box = drawing.getBoundingClientRect();
    const [x0, kx] = JSON.parse(drawing.dataset.map);
    const scale = drawing.querySelector("svg").viewBox.baseVal.width / box.width;
    index = nearest(longest, ((event.clientX - box.left) * scale - x0) / kx);
    show(longest[index], item);
  };
  item.figure.querySelectorAll(".drawing").forEach(drawing => {
    drawing.addEventListener("pointermove", point);
    drawing.addEventListener("pointerdown", point);
    drawing.addEventListener("pointerleave", clear);
  });
  item.figure.addEventListener("keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!move || !longest.length) return;
    event.preventDefault();
    index = Math.min(longest.length - 1, Math.max(0, index + move));
    show(longest[index], item);
  });
  item.figure.addEventListener("blur", clear);
}

// What the model wrote, step by step.
const samples = document.getElementById("samples-data");
if (samples) {
  const data = JSON.parse(samples.textContent), root = document.getElementById("samples");
  const slider = root.querySelector("input"), output = root.querySelector("output");
  const cards = root.querySelector(".samples");
  const element = (name, content, attributes = {}) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...content);
    return made;
  };
  // As the page has those of the last validation.
  const card = (ways, [prompt, ...texts]) => element("article", texts.map((text, i) => element("div", [
    element("h3", [ways[i] ?? ""]),
    element("p", [element("b", [prompt]), element("span", [text])], {lang: "az"}),
  ])));
  const last = data.titles.length - 1;
  const turn = (number, stored = true) => {
    number = Math.min(last, Math.max(0, number));
    slider.value = number;
    output.textContent = data.titles[number];
    cards.replaceChildren(...data.texts[number].map(row => card(data.ways[number], row)));
    // The newest one stays the newest when the page loads again.
    if (stored) keep("sample", number === last ? null : data.titles[number]);
  };
  slider.addEventListener("input", () => turn(Number(slider.value)));
  root.querySelectorAll("[data-move]").forEach(button =>
    button.addEventListener("click", () => turn(Number(slider.value) + Number(button.dataset.move))));
  const stored = data.titles.indexOf(state.sample);
  turn(stored < 0 ? last : stored, false);
}

// The axis of a comparison.
const switches = [...document.querySelectorAll(".switch button")];
const choose = axis => {
  document.querySelectorAll("[data-axis]:not(button)").forEach(part => { part.hidden = part.dataset.axis !== axis; });
  switches.forEach(button => button.setAttribute("aria-pressed", button.dataset.axis === axis));
  clear();
};
switches.forEach(button => button.addEventListener("click", () => { choose(button.dataset.axis); keep("axis", button.dataset.axis); }));
if (switches.length) choose(switches.some(button => button.dataset.axis === state.axis) ? state.axis : switches[0].dataset.axis);

document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", async () => {
  const code = button.parentElement.querySelector("code");
  try { await navigator.clipboard.writeText(code.textContent); } catch {
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  const before = button.textContent;
  button.textContent = words.copied;
  setTimeout(() => { button.textContent = before; }, 1500);
}));

// What was open stays open.
document.querySelectorAll("details").forEach(details => {
  if (state[`open:${details.id}`]) details.open = true;
  details.addEventListener("toggle", () => keep(`open:${details.id}`, details.open));
});

// When the run was last alive, and the newest page while it trains.
const duration = seconds => {
  const sizes = [86400, 3600, 60, 1];
  const i = Math.max(0, sizes.findIndex(size => seconds >= size));
  return seconds < 1 ? `0 ${words.units[3]}` : `${Math.floor(seconds / sizes[i])} ${words.units[i]}`;
};
const refresh = Number(document.body.dataset.refresh || 0);
const tell = () => document.querySelectorAll("time").forEach(time => {
  const seconds = Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000);
  time.title ||= time.textContent;
  const stamp = time.title, ago = words.ago.replace("{time}", duration(seconds));
  const silent = seconds > Number(time.dataset.silent ?? Infinity);
  time.textContent = `${stamp} (${silent ? words.silent.replace("{time}", duration(seconds)) : ago})`;
});
tell();
setInterval(tell, 5000);
if (state.scroll) { scrollTo(0, state.scroll); keep("scroll", 0); }
if (refresh) {
  let busy = 0;
  addEventListener("pointerdown", () => { busy = Date.now(); });
  addEventListener("keydown", () => { busy = Date.now(); });
  const again = () => {
    // Not while someone reads a value or moves the slider, and not in a tab that nobody sees.
    if (document.hidden || Date.now() - busy < 5000 || document.querySelector(".pointer")) { setTimeout(again, 2000); return; }
    keep("scroll", scrollY);
    location.reload();
  };
  setTimeout(again, refresh * 1000);
}
})();
