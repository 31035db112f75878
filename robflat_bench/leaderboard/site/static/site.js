// The table of a board (sorting, filtering, both in the address), the cards of pictures, and buttons that copy.
// Without this file the table is complete and in order, and every mark of a picture is a link.
"use strict";

(() => {
  const table = document.getElementById("board");
  if (!table) return;
  const form = document.getElementById("view");
  const said = document.getElementById("said");
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies]; // ranked rows, then the others: these stay last in every order
  const rows = bodies.map((body) => [...body.rows]);
  const all = rows.flat();
  const start = { sort: "rank", down: false };
  let order = { ...start };

  const name = (head) => head.dataset.name || head.dataset.label;
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    head.dataset.label = head.textContent;
    const arrow = document.createElement("span");
    arrow.ariaHidden = "true";
    button.append(...head.childNodes);
    button.insertBefore(arrow, button.querySelector("small"));
    button.addEventListener("click", () => {
      const again = order.sort === head.dataset.key;
      order = { sort: head.dataset.key, down: again && !order.down };
      show();
      said.textContent = `Sorted by ${name(head)}, ${order.down ? "descending" : "ascending"}.`;
      remember();
    });
    head.append(button);
    if (!head.dataset.full) continue;
    const tip = document.createElement("span");
    tip.className = "tip";
    tip.id = `tip-${head.dataset.key}`;
    tip.role = "tooltip";
    tip.textContent = head.dataset.full;
    button.setAttribute("aria-describedby", tip.id);
    head.append(tip);
  }

  // The sort key of a cell: its number, or its text in a column of text; null for a cell without a number.
  const read = (cell) => {
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    if (!cell.matches(".n, .rank")) return cell.textContent.trim().toLowerCase();
    const number = parseFloat(cell.textContent.replace("\u2212", "-"));
    return Number.isNaN(number) ? null : number;
  };

  // What a search looks through: the row's name and parts, and the works that these cite.
  const works = new Map(JSON.parse(document.getElementById("works").textContent));
  const texts = new Map(
    all.map((row) => {
      const parts = row.dataset.parts.split(" ");
      const cited = parts.map((part) => works.get(part) ?? "");
      return [row, [row.dataset.row, row.querySelector("th a").textContent, ...parts, ...cited].join(" ").toLowerCase()];
    }),
  );

  // The first cell says the rank by the column that orders the table, where methods are ranked by it.
  const ranks = all.map((row) => [row.cells[0], [...row.cells[0].childNodes]]);

  function rank(at) {
    const ranked = all.some((row) => row.cells[at].dataset.rank);
    for (const [cell, built] of ranks) {
      const { rank, between } = cell.parentNode.cells[at].dataset;
      if (!ranked) cell.replaceChildren(...built);
      else if (rank) {
        const [big, small] = ["b", "small"].map((tag) => document.createElement(tag));
        [big.textContent, small.textContent] = [rank, between];
        cell.replaceChildren(big, small);
      }
    }
  }

  function sort() {
    const at = heads.findIndex((head) => head.dataset.key === order.sort);
    heads.forEach((head, k) => {
      if (k === at) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const sign = order.down ? -1 : 1;
    bodies.forEach((body, k) => {
      const keyed = rows[k].map((row) => [read(row.cells[at]), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return a < b ? -sign : a > b ? sign : 0;
      });
      body.append(...keyed.map(([, row]) => row));
    });
    rank(at);
  }

  function filter() {
    const { q, tier, extra, ranked } = form.elements;
    const words = q.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of all) {
      const text = texts.get(row);
      row.hidden =
        !words.every((word) => text.includes(word)) ||
        (tier.value && row.dataset.tier !== tier.value) ||
        (extra.value && row.dataset.extra !== extra.value) ||
        (ranked.checked && row.parentNode.className === "unranked");
      count += !row.hidden;
    }
    document.getElementById("count").textContent = `${count} of ${all.length} methods`;
  }

  function show() {
    sort();
    filter();
  }

  // The address holds only the settings that differ from the page as it was built.
  const fields = [...form.elements].filter((field) => field.name);
  const now = (field) => (field.type === "checkbox" ? String(+field.checked) : field.value);
  const first = (field) => (field.type === "checkbox" ? String(+field.defaultChecked) : "");

  function address() {
    const query = new URLSearchParams();
    for (const field of fields) if (now(field) !== first(field)) query.set(field.name, now(field));
    if (order.sort !== start.sort || order.down) query.set("sort", order.sort);
    if (order.down) query.set("down", "1");
    const text = query.toString();
    return location.pathname + (text ? `?${text}` : "") + location.hash;
  }

  function remember() {
    const next = address();
    if (next !== location.pathname + location.search + location.hash) history.pushState(null, "", next);
  }

  function recall() {
    const query = new URLSearchParams(location.search);
    for (const field of fields) {
      const value = query.get(field.name) ?? first(field);
      if (field.type === "checkbox") field.checked = value === "1";
      else field.value = value;
      if (field.selectedIndex === -1) field.value = "";
    }
    const sort = query.get("sort") ?? start.sort;
    const known = heads.some((head) => head.dataset.key === sort);
    order = known ? { sort, down: query.get("down") === "1" } : { ...start };
    show();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  form.addEventListener("change", remember);
  window.addEventListener("popstate", recall);
  document.getElementById("filters").hidden = false;
  recall();
})();

// Pictures: the mark under pointer or focus, or the row of the table beside it, has a card and is lit in both.
for (const picture of document.querySelectorAll(".central")) {
  const card = picture.querySelector(".card");
  const cards = new Map([...picture.querySelectorAll(".cards > li")].map((item) => [item.dataset.row, item]));
  const rows = new Map([...document.querySelectorAll("#board tr[data-row]")].map((row) => [row.dataset.row, row]));
  // A card of its own, or the name of the row beside the picture with the columns that are always shown.
  function content(key) {
    if (cards.has(key)) return [...cards.get(key).childNodes].map((node) => node.cloneNode(true));
    const list = document.createElement("dl");
    for (const cell of rows.get(key).querySelectorAll("td[data-label]")) {
      const [pair, term, value] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = cell.dataset.label;
      value.textContent = cell.firstChild.textContent;
      pair.append(term, value);
      list.append(pair);
    }
    return [...[...rows.get(key).querySelector("th").childNodes].map((node) => node.cloneNode(true)), list];
  }
  const named = (mark) => decodeURIComponent(mark.getAttribute("href").split("/").at(-2)); // the row of a mark
  const lit = () => [...picture.querySelectorAll(".datum.lit"), ...[...rows.values()].filter((row) => row.matches(".lit"))];

  const light = (key) => {
    for (const one of lit()) one.classList.remove("lit");
    for (const mark of picture.querySelectorAll(".datum")) if (named(mark) === key) mark.classList.add("lit");
    rows.get(key)?.classList.add("lit");
    card.replaceChildren(...content(key));
    card.hidden = false;
  };
  for (const kind of ["pointerover", "focusin"]) {
    picture.addEventListener(kind, (event) => {
      const mark = event.target.closest(".datum");
      if (mark) light(named(mark));
    });
    for (const [key, row] of rows) row.addEventListener(kind, () => light(key));
  }
  // A finger has no hover: its first touch shows the card, whose name is the link.
  picture.addEventListener("click", (event) => {
    const mark = event.target.closest(".datum");
    if (mark && event.pointerType === "touch") event.preventDefault();
  });
}

for (const holder of document.querySelectorAll(".copied")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(holder.querySelector("code").textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl-C"; // the browser refuses: the text is selected instead
      getSelection().selectAllChildren(holder.querySelector("code"));
    }
  });
  holder.append(button);
}
