// Tables are filtered by words and sorted by their columns; an open row stays under its own.
const units = {kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, "µs": 1e-3, s: 1e3};
for (const table of document.querySelectorAll("[data-filter]")) {
  const find = part => document.getElementById(table.dataset.filter + part);
  const words = find(""), only = find("-only"), order = find("-sort"), count = find("-count");
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const texts = rows.map(row => row.textContent.toLowerCase());
  // Names break behind their dots.
  for (const name of body.querySelectorAll(".name"))
    if (!name.firstElementChild)
      name.replaceChildren(...name.textContent.split(/(?<=\.)/).flatMap(piece => [piece, document.createElement("wbr")]));
  const refresh = () => {
    const wanted = words.value.trim().toLowerCase();
    let left = 0;
    rows.forEach((row, k) => {
      row.hidden = !texts[k].includes(wanted) || (only?.checked && !row.classList.contains("fell"));
      if (row.nextSibling?.classList?.contains("open")) row.nextSibling.hidden = row.hidden;
      left += !row.hidden;
    });
    if (count) count.textContent = left < rows.length ? `${left} / ${rows.length}` : "";
  };
  const key = (row, at, number) => {
    const cell = row.cells[at], text = cell.dataset.value ?? cell.textContent.trim();
    if (!number) return text.toLowerCase();
    const [, unit] = text.match(/ (\S+)$/) ?? [], value = parseFloat(text.replaceAll(",", "")) * (units[unit] ?? 1);
    return Number.isNaN(value) ? Infinity : value;
  };
  const place = sorted => {
    for (const row of sorted) {
      const open = row.nextElementSibling?.classList.contains("open") ? row.nextElementSibling : null;
      body.append(row);
      if (open) body.append(open);
    }
    heads.forEach(head => head.removeAttribute("aria-sort"));
  };
  const sort = (at, down) => {
    const number = heads[at].dataset.sort === "number" || heads[at].classList.contains("number"), sign = down ? -1 : 1;
    const keyed = rows.map(row => [key(row, at, number), row]);
    keyed.sort(([a], [b]) => number
      ? (a === Infinity || b === Infinity ? (a === b ? 0 : a === Infinity ? 1 : -1) : sign * (a - b))
      : sign * a.localeCompare(b, undefined, {numeric: true}));
    place(keyed.map(([, row]) => row));
    heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
    if (order) order.value = at;
  };
  heads.forEach((head, at) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(at, head.getAttribute("aria-sort") === "ascending"));
    order?.append(new Option(button.textContent, at));
  });
  order?.addEventListener("change", () => order.value ? sort(+order.value, false) : place(rows));
  words.closest("form").hidden = false;
  words.closest("form").addEventListener("submit", event => event.preventDefault());
  words.addEventListener("input", refresh);
  only?.addEventListener("change", refresh);
}
