// Hover in plots, links into the viewer, and paths from where the page lies. Without it nothing is lost but comfort.
"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);

const sectionOf = (z) => facts.sections.find(([, start, stop]) => z >= start && z < stop);

function shownNumber(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

// Folded parts open where a link leads into them, and to print.
function unfold(element) {
  for (let part = element && element.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
}
const follow = () => unfold(document.getElementById(decodeURIComponent(location.hash.slice(1))));
addEventListener("hashchange", follow);
follow();

// Where the results lie, if the page was opened as a file from among them.
if (location.protocol === "file:" && location.pathname.endsWith("/report.html")) {
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);
  for (const place of document.querySelectorAll("[data-path]")) {
    const path = decodeURIComponent(new URL(encodeURI(place.dataset.path), location).pathname).replace(/\/$/, "");
    place.textContent = "quoted" in place.dataset ? quoted(path) : path;
  }
}

// The nearest point of each line, where the pointer is.
for (const svg of document.querySelectorAll("svg[data-points]")) {
  const { x, left, right, top, bottom, series, names } = JSON.parse(svg.dataset.points);
  const tip = document.createElement("div");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  tip.className = "tip";
  tip.hidden = true;
  cursor.setAttribute("stroke", "var(--faint)");
  svg.append(cursor);
  svg.parentElement.append(tip);
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (at < left || at > right) return null;
    const value = x[0] + ((at - left) / (right - left)) * (x[1] - x[0]);
    const whole = Math.max(0, Math.round(value));
    return { value: names ? Math.min(whole, names.length - 1) : series.plane ? whole : value, box };
  };
  svg.addEventListener("pointermove", (event) => {
    const found = place(event);
    tip.hidden = !found;
    cursor.setAttribute("visibility", found ? "visible" : "hidden");
    if (!found) return;
    const lines = [];
    let where = found.value;
    for (const [label, xs, ys] of series.lines) {
      let nearest = 0;
      xs.forEach((one, i) => { if (Math.abs(one - found.value) < Math.abs(xs[nearest] - found.value)) nearest = i; });
      if (lines.length === 0) where = xs[nearest];
      lines.push(`${label} ${shownNumber(ys[nearest])}`);
    }
    const section = series.plane ? sectionOf(Math.round(where)) : null;
    const first = names ? `section ${names[where]}` : series.plane ? `plane ${where}` : `${series.label} ${shownNumber(where)}`;
    tip.textContent = [section ? `${first}, section ${section[0]}` : first, ...lines].join(" · ");
    const across = left + ((where - x[0]) / (x[1] - x[0])) * (right - left);
    cursor.setAttribute("d", `M${across},${top}V${bottom}`);
    const pixels = (across / svg.viewBox.baseVal.width) * found.box.width;
    tip.style.left = `${Math.max(0, Math.min(pixels + 8, found.box.width - tip.offsetWidth - 4))}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
}

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open]):not(.screen)")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => { for (const part of folded) part.open = false; });
