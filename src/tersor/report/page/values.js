// The values of a site, drawn from the numbers that stand in the page: a histogram, ranges on its axis, and channels.
const drawing = Object.assign(document.createElement("template"), {innerHTML: "<svg></svg>"});
const SPACE = drawing.content.firstChild.namespaceURI;
const part = (name, attributes, children = []) => {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
const picture = (kind, height, label, paths) => part("svg", {
  class: kind, viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label,
}, paths.map(([kind, d]) => part("path", {class: kind, d})));
const share = (value, low, high) => high > low ? Math.min(100, Math.max(0, 100 * (value - low) / (high - low))) : 0;
const neat = value => String(+value.toPrecision(4));
const ends = (...words) => {
  const line = document.createElement("div");
  line.className = "ends";
  line.append(...words.map(word => Object.assign(document.createElement("span"), {textContent: word})));
  return line;
};

const drawHistogram = (box, low, high, words) => {
  const [first, width, last, ...counts] = box.dataset.bins.split(" ").map(Number);
  const top = Math.log1p(Math.max(...counts)), at = k => share(Math.min(last, first + k * width), low, high).toFixed(2);
  const outline = counts.map((count, k) => `V${(100 - 100 * Math.log1p(count) / top).toFixed(1)}H${at(k + 1)}`);
  const drawn = picture("counts", 100, words, [["area", `M${at(0)} 100${outline.join("")}V100Z`]]);
  drawn.told = across => {
    const value = low + across * (high - low), k = Math.floor((value - first) / width);
    if (!(k in counts)) return "";
    return `${neat(first + k * width)} … ${neat(Math.min(last, first + (k + 1) * width))}: ${counts[k].toLocaleString("en")}`;
  };
  return drawn;
};
const drawChannels = (text, words) => {
  const [count, lows, highs] = text.split("|").map(found => found.split(" ").map(Number));
  const columns = highs.length, step = Math.ceil(count[0] / columns);
  const low = k => lows[lows.length > 1 ? k : 0], places = [...highs.keys()];
  const bottom = Math.min(0, ...lows), top = Math.max(0, ...highs);
  const down = value => (100 - share(value, bottom, top)).toFixed(1);
  const across = k => (100 * Math.min(count[0], k * step) / count[0]).toFixed(2);
  const above = places.map(k => `V${down(highs[k])}H${across(k + 1)}`).join("");
  const below = places.reverse().map(k => `V${down(low(k))}H${across(k)}`).join("");
  const drawn = picture("channels", 100, words, [
    ["area", `M0 ${down(low(0))}${above}${below}Z`], ["grid zero", `M0 ${down(0)}H100`],
  ]);
  drawn.told = across => {
    const k = Math.min(columns - 1, Math.floor(across * count[0] / step)), end = Math.min(count[0], (k + 1) * step) - 1;
    return `${end > k * step ? `${k * step}–${end}` : end}: ${low(k)} … ${highs[k]}`;
  };
  return drawn;
};
// As they stand in the page, to be drawn once more in the details of a layer.
const plain = new Map([...document.querySelectorAll("#ranges .values")].map(box => [box, box.cloneNode(true)]));
const draw = box => {
  if (box.classList.contains("drawn")) return;
  box.classList.add("drawn");
  const [words, ranges] = box.querySelectorAll("p"), list = box.querySelector("ul");
  const pairs = [...list.children].map(line => line.querySelector("b").textContent.split("…").map(Number));
  const [first, , last] = box.dataset.bins.split(" ").map(Number);
  const low = Math.min(first, ...pairs.map(pair => pair[0])), high = Math.max(last, ...pairs.map(pair => pair[1]));
  const lane = (pair, k) => {
    const [left, right] = pair.map(value => share(value, low, high).toFixed(2)), y = 20 * k + 10;
    const chosen = list.children[k].firstChild.textContent.trim() === "chosen";
    list.children[k].classList.toggle("chosen", chosen);
    return [`bracket ${chosen ? "" : "base"}`, `M${left} ${y - 4}v8M${left} ${y}H${right}m0-4v8`];
  };
  const lanes = document.createElement("div");
  lanes.className = "axis";
  words.before(drawHistogram(box, low, high, words.textContent), ends(neat(low), neat(high)));
  list.before(lanes);
  lanes.append(picture("ranges", 20 * pairs.length, "", pairs.map(lane)), list);
  lanes.firstChild.setAttribute("aria-hidden", "true");
  if (ranges) ranges.before(drawChannels(box.dataset.channels, ranges.textContent));
};
for (const details of document.querySelectorAll("details:has(.values)")) {
  const all = () => { if (details.open) details.querySelectorAll(".values").forEach(draw); };
  details.addEventListener("toggle", all);
  all();
}
