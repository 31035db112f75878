// Any two methods side by side, from the data in the page. The choice stands in the address.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("pair");
  const place = (id) => document.getElementById(id).parentNode;
  const at = new Map(data.rows.map((row, k) => [row.id, k]));
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, look, ...content) {
    const made = document.createElement(tag);
    if (look) made.className = look;
    made.append(...content);
    return made;
  }

  function draw(tag, attributes, text = "") {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  // Numbers as the rest of the site writes them.
  const decimals = { fraction: 1, nats: 3, ratio: 2 };
  function number(value, unit) {
    if (value === null) return "–";
    const shown = unit === "fraction" ? 100 * value : value;
    const text = unit in decimals ? shown.toFixed(decimals[unit]) : String(+shown.toPrecision(3));
    return text.replace("-", Number(text) ? "−" : "");
  }
  const units = { fraction: " %", nats: " nats" };
  const chance = (p) => (p === null ? "–" : p < 0.001 ? "< 0.001" : String(+p.toPrecision(2)));
  const interval = (difference, reach, unit) =>
    reach === null ? "one seed" : `[${number(difference - reach, unit)}, ${number(difference + reach, unit)}]`;

  // The numbers of a pair: kept once, for the earlier row minus the later one.
  function numbers(i, j, column) {
    if (i === j) return null;
    const [low, high, sign] = i < j ? [i, j, 1] : [j, i, -1];
    const before = (low * (2 * data.rows.length - low - 1)) / 2;
    const found = data.pairs[before + high - low - 1][column];
    return found && [sign * found[0], ...found.slice(1)];
  }

  function table(body, head, lines) {
    const cell = (tag, k, text) => make(tag, k ? "n" : "", text);
    const first = make("tr", "", ...head.map((text, k) => Object.assign(cell("th", k, text), { scope: "col" })));
    const rows = lines.map((line) =>
      make("tr", "", ...line.map((text, k) => (k ? cell("td", k, text) : Object.assign(cell("th", 0, text), { scope: "row" })))),
    );
    body.replaceChildren(make("thead", "", first), make("tbody", "", ...rows));
  }

  const points = { fraction: " points", nats: " nats" };
  function sentence(a, b, i, j) {
    if (i === j) return "Choose two different methods.";
    if (Math.min(a.seeds.length, b.seeds.length) < 2) return `${a.name} against ${b.name}: one seed says nothing of a method.`;
    const [apart, alike] = [[], []];
    data.columns.forEach((column, k) => {
      const found = numbers(i, j, k);
      if (!found) return;
      const [difference, reach, p] = found;
      const size = `${number(Math.abs(difference), column.unit)}${points[column.unit] ?? ""}`;
      const word = difference < 0 ? column.less : column.more;
      if (Math.abs(difference) <= reach) alike.push(column.within);
      else {
        const shared = [...a.letters[k]].some((letter) => b.letters[k].includes(letter));
        const holm = shared ? ", not significant among all pairs of methods" : "";
        apart.push(`${column.within} is ${word} by ${size} (p ${p < 0.001 ? "" : "= "}${chance(p)}${holm})`);
      }
    });
    if (alike.length) apart.push(`no significant difference in ${alike.join(", ")}`);
    return `${a.name} against ${b.name}, ${a.seeds.length} and ${b.seeds.length} seeds: ${apart.join("; ")}.`;
  }

  // 1 bit per test image, the first in the lowest bit.
  const bits = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const wrong = (bytes, k) => (bytes[k >> 3] >> (k & 7)) & 1;

  // McNemar: exact and two-sided, min(1, 2 P(X <= min)) for X ~ Bin(both, 1/2).
  function mcnemar(one, other) {
    const both = one + other;
    let term = -both * Math.LN2;
    let sum = 0;
    for (let k = 0; k <= Math.min(one, other); k++) {
      sum += Math.exp(term);
      term += Math.log((both - k) / (k + 1));
    }
    return Math.min(1, 2 * sum);
  }

  function split(one, other) {
    const groups = [[], [], [], []]; // both right, only A wrong, only B wrong, both wrong
    for (let k = 0; k < data.count; k++) groups[wrong(one, k) + 2 * wrong(other, k)].push(k);
    return groups;
  }

  function cell(k) {
    const made = make("span");
    made.title = data.sheet ? `test image ${k}, class ${data.sheet.labels[k]}` : `test image ${k}`;
    if (!data.sheet) return made;
    const { width, height, across, address } = data.sheet;
    const zoom = Math.ceil(24 / width);
    const lines = Math.ceil(data.count / across);
    Object.assign(made.style, {
      width: `${zoom * width}px`,
      height: `${zoom * height}px`,
      backgroundImage: `url("${address}")`,
      backgroundSize: `${zoom * width * across}px ${zoom * height * lines}px`,
      backgroundPosition: `${-zoom * width * (k % across)}px ${-zoom * height * Math.floor(k / across)}px`,
    });
    return made;
  }

  function outcomes(a, b, k) {
    const titles = ["Both right", `Only ${a.name} wrong`, `Only ${b.name} wrong`, "Both wrong"];
    const groups = split(bits(a.wrong[k]), bits(b.wrong[k]));
    const parts = titles.map((title, g) => {
      const cells = make("div", `cells o${g}`, ...groups[g].map(cell));
      cells.ariaHidden = "true";
      const list = make("details", "", make("summary", "", "Their numbers"), make("p", "quiet", groups[g].join(", ")));
      return make("div", "", make("h3", "", `${title}: ${groups[g].length}`), cells, ...(groups[g].length ? [list] : []));
    });
    place("images").querySelector(".outcomes").replaceChildren(...parts);
  }

  function chart(k, a, b) {
    const { title, unit } = data.curves[k];
    const [width, height, left, right, top, bottom] = [460, 270, 50, 10, 12, 40];
    const lines = [a, b].flatMap((row, side) => row.curves[k].map((line) => [side, line]));
    const values = lines.flatMap(([, line]) => line.filter((value) => value !== null));
    const epochs = Math.max(2, ...lines.map(([, line]) => line.length));
    const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    const room = 0.06 * (high - low) || 0.5;
    const x = (epoch) => left + ((width - left - right) * epoch) / (epochs - 1);
    const y = (value) => height - bottom - ((height - top - bottom) * (value - low + room)) / (high - low + 2 * room);
    const label = `${title} by epoch: ${a.name} solid, ${b.name} dashed`;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const value of [low, (low + high) / 2, high]) {
      svg.append(draw("path", { class: "grid", d: `M${left} ${y(value)}H${width - right}` }));
      svg.append(draw("text", { class: "tick end", x: left - 6, y: y(value) + 4 }, number(value, unit)));
    }
    for (const epoch of new Set([0, Math.floor((epochs - 1) / 2), epochs - 1])) {
      svg.append(draw("text", { class: "tick middle", x: x(epoch), y: height - bottom + 17 }, epoch + 1));
    }
    svg.append(draw("text", { class: "title middle", x: (left + width - right) / 2, y: height - 5 }, "Epoch"));
    for (const [side, line] of lines) {
      const points = line.flatMap((value, epoch) => (value === null ? [] : [`${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`]));
      if (points.length) svg.append(draw("path", { class: `curve c${side}`, d: `M${points.join("L")}` }));
    }
    const unitName = (units[unit] ?? "").trim();
    return make("figure", "", make("h3", "", unitName ? `${title}, ${unitName}` : title), svg);
  }

  function show() {
    const [i, j] = ["a", "b"].map((side) => at.get(form.elements[side].value));
    const [a, b] = [data.rows[i], data.rows[j]];
    document.getElementById("said").textContent = sentence(a, b, i, j);
    document.getElementById("compared").hidden = i === j;
    table(
      place("differences").querySelector("table"),
      ["Quantity", "A − B", "95 % interval", "p", a.name, b.name, "Letters of A | B", "Detectable"],
      data.columns.map((column, k) => {
        const [difference, reach, p, detectable] = numbers(i, j, k) ?? [null, null, null, null];
        const between = difference === null ? "–" : interval(difference, reach, column.unit);
        const shown = [difference, detectable].map((value) => number(value, column.unit));
        const title = units[column.unit] ? `${column.title},${units[column.unit]}` : column.title;
        const letters = `${a.letters[k] || "–"} | ${b.letters[k] || "–"}`;
        return [title, shown[0], between, chance(p), a.values[k], b.values[k], letters, shown[1]];
      }),
    );
    const both = Math.min(a.wrong.length, b.wrong.length);
    const pairs = [...Array(both).keys()].map((k) => {
      const [, onlyA, onlyB] = split(bits(a.wrong[k]), bits(b.wrong[k])).map((group) => group.length);
      return [`${a.seeds[k]} and ${b.seeds[k]}`, String(onlyA), String(onlyB), chance(mcnemar(onlyA, onlyB))];
    });
    table(place("networks").querySelector("table"), ["Seeds", `Only ${a.name} wrong`, `Only ${b.name} wrong`, "p"], pairs);
    const chosen = form.elements.networks;
    const k = Math.max(0, Math.min(chosen.selectedIndex, both - 1));
    chosen.replaceChildren(...pairs.map(([seeds], n) => new Option(`seeds ${seeds}`, String(n), n === k, n === k)));
    if (both) outcomes(a, b, k);
    else place("images").querySelector(".outcomes").replaceChildren();
    place("curves").querySelector(".grid").replaceChildren(...data.curves.map((_, k) => chart(k, a, b)));
  }

  function remember() {
    const query = new URLSearchParams(["a", "b"].map((side) => [side, form.elements[side].value]));
    history.replaceState(null, "", `${location.pathname}?${query}${location.hash}`);
  }

  for (const [side, id] of new URLSearchParams(location.search)) {
    if (["a", "b"].includes(side) && at.has(id)) form.elements[side].value = id;
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("change", (event) => {
    if (event.target.form !== form) return;
    show();
    remember();
  });
  document.getElementById("swap").addEventListener("click", () => {
    const { a, b } = form.elements;
    [a.value, b.value] = [b.value, a.value];
    show();
    remember();
  });
  form.hidden = false;
  show();
})();
