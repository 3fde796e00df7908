// The picture of the network is panned by dragging and zoomed by buttons, or the wheel with Ctrl.
const canvas = document.querySelector(".canvas");
if (canvas) {
  const picture = canvas.querySelector(".picture");
  const full = {width: +picture.getAttribute("width"), height: +picture.getAttribute("height")};
  let scale = 1, from = null;
  const zoom = (to, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) => {
    to = Math.min(3, Math.max(Math.min(1, canvas.clientWidth / full.width), to));
    // A long network seen as a whole is a strip of colours, high enough to be seen.
    const high = Math.max(full.height * to, Math.min(full.height, 72));
    const left = (canvas.scrollLeft + x) / scale * to - x, top = (canvas.scrollTop + y) / scale * to - y;
    picture.style.width = `${full.width * to}px`;
    picture.style.height = `${high}px`;
    picture.setAttribute("preserveAspectRatio", high > full.height * to ? "none" : "xMidYMid");
    picture.classList.toggle("far", to < .4);
    canvas.scrollLeft = left;
    canvas.scrollTop = top;
    scale = to;
  };
  for (const button of document.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => {
      const way = button.dataset.zoom;
      zoom(way === "fit" ? canvas.clientWidth / full.width : way === "1:1" ? 1 : scale * +way);
    });
  document.querySelector(".zoom").hidden = false;
  document.getElementById("network").classList.add("with-graph");
  canvas.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});
  canvas.addEventListener("pointerdown", event => {
    if (event.pointerType !== "mouse" || event.button) return;
    from = {x: event.clientX + canvas.scrollLeft, y: event.clientY + canvas.scrollTop, moved: false};
  });
  addEventListener("pointermove", event => {
    if (!from) return;
    const x = from.x - event.clientX, y = from.y - event.clientY;
    if (!from.moved && Math.hypot(x - canvas.scrollLeft, y - canvas.scrollTop) < 4) return;
    from.moved = true;
    canvas.classList.add("drag");
    canvas.scrollLeft = x;
    canvas.scrollTop = y;
  });
  addEventListener("pointerup", () => {
    if (from?.moved) addEventListener("click", event => event.stopPropagation(), {capture: true, once: true});
    from = null;
    canvas.classList.remove("drag");
  });
  picture.addEventListener("dragstart", event => event.preventDefault());
}
