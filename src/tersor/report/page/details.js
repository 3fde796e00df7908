// A layer's details open under its row; the picture and the profile lead there, too.
const layers = document.querySelector("table.layers");
const show = at => {
  const row = layers.querySelector(`[data-layer="${at}"]`), inside = document.getElementById(`layer-${at}`);
  const open = document.createElement("tr"), cell = document.createElement("td");
  for (const piece of inside.querySelectorAll("[data-site]")) {
    const site = document.getElementById(piece.dataset.site)?.querySelector(".values");
    if (!site || piece.querySelector(".values")) continue;
    piece.append(plain.get(site).cloneNode(true));
  }
  inside.querySelectorAll(".values").forEach(draw);
  open.className = "open";
  cell.colSpan = row.cells.length;
  cell.append(inside);
  open.append(cell);
  row.after(open);
  row.classList.add("chosen");
  row.querySelector("a").setAttribute("aria-expanded", "true");
  return row;
};
const hide = row => {
  const home = document.querySelector(`details[data-home="${row.dataset.layer}"]`);
  home.append(row.nextElementSibling.querySelector(".inside"));
  row.nextElementSibling.remove();
  row.classList.remove("chosen");
  row.querySelector("a").setAttribute("aria-expanded", "false");
};
const reach = at => {
  const row = layers.querySelector(`[data-layer="${at}"]`);
  if (!row.classList.contains("chosen")) show(at);
  row.hidden = row.nextElementSibling.hidden = false;
  row.scrollIntoView({block: "center"});
  row.querySelector("a").focus({preventScroll: true});
};
if (layers) {
  layers.classList.add("active");
  document.querySelectorAll(".with-script").forEach(piece => { piece.hidden = false; });
  document.querySelector(".one-by-one").hidden = true;
  for (const inside of document.querySelectorAll(".inside.layer"))
    inside.parentElement.dataset.home = inside.id.slice("layer-".length);
  for (const row of layers.querySelectorAll("[data-layer]")) {
    row.querySelector("a").setAttribute("aria-expanded", "false");
    row.addEventListener("click", event => {
      event.preventDefault();
      if (String(getSelection()) && !event.target.closest("a")) return;
      row.classList.contains("chosen") ? hide(row) : show(row.dataset.layer);
    });
  }
  for (const link of document.querySelectorAll('.picture a[href^="#layer-"]'))
    link.addEventListener("click", event => {
      event.preventDefault();
      reach(link.getAttribute("href").slice("#layer-".length));
    });
}
for (const rule of document.querySelectorAll(".rule")) {
  const button = document.createElement("button"), text = rule.querySelector("pre");
  button.type = "button";
  button.className = "copy";
  button.textContent = layers.dataset.copy;
  rule.append(button);
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      document.execCommand("copy");
    }
    button.textContent = layers.dataset.copied;
    setTimeout(() => { button.textContent = layers.dataset.copy; }, 2000);
  });
}
