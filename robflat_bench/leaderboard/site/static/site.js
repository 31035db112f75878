// The board's table: sorting, filtering, and both in the address. Without this file the table is complete and in order.
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
  }

  // The sort key of a cell: its number, or its text in a column of text; null for an empty cell.
  const read = (cell) => {
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.matches(".n, .rank") ? null : cell.textContent.trim().toLowerCase();
  };

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
  }

  function filter() {
    const { q, tier, extra, ranked } = form.elements;
    const words = q.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of all) {
      const text = row.querySelector("th").textContent.toLowerCase();
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
