// Exact values under the pointer: of a drawing's column, of a layer in the profile or the picture, else its label.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
const across = (drawing, event) => {
  const box = drawing.getBoundingClientRect();
  return Math.min(.9999, Math.max(0, (event.clientX - box.left) / box.width));
};
const placed = (drawing, event) => {
  const places = drawing.dataset.places.split(" ");
  return places[Math.floor(across(drawing, event) * places.length)];
};
const ofLayer = at => {
  const cells = document.querySelector(`tr[data-layer="${at}"]`).cells;
  return `${cells[1].querySelector(".name").textContent}: ${cells[4].textContent.trim()}`;
};
const told = (drawing, event) => {
  if (drawing.told) return drawing.told(across(drawing, event));
  if (drawing.dataset.places) return ofLayer(placed(drawing, event));
  if (drawing.classList.contains("node")) return ofLayer(drawing.getAttribute("href").slice("#layer-".length));
  return drawing.getAttribute("aria-label");
};
document.addEventListener("pointermove", event => {
  const drawing = event.target.closest?.("a.node, .point, svg[role=img]"), text = drawing ? told(drawing, event) : "";
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = tip.getBoundingClientRect(), width = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, width - box.width - 4))}px`;
  tip.style.top = `${event.clientY > box.height + 20 ? event.clientY - box.height - 12 : event.clientY + 18}px`;
});
document.addEventListener("pointerleave", () => { tip.hidden = true; });
for (const drawing of document.querySelectorAll("[data-places]"))
  drawing.addEventListener("click", event => reach(placed(drawing, event)));
