// The volume before and after in two canvases of NiiVue, the one before above the other and cut where the swipe says.
"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const { shape, spacing, planes, voxels, range, windows, limit, colours, centre } = facts.viewer;
  const [depth, height, width] = shape;
  const find = (name) => viewer.querySelector(`[name="${name}"]`);
  const stage = viewer.querySelector(".stage");
  const times = ["before", "after"];
  const sliders = ["x", "y", "z"].map(find);
  const narrow = matchMedia("(max-width: 700px)");
  const names = viewer.querySelectorAll(".name");
  let shown = null; // of each time: NiiVue's object
  let bytes = null; // of each volume
  let starting = null;

  async function unpack(id) {
    const text = atob(document.getElementById(id).textContent.trim());
    const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function run(code) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
      script.onload = resolve;
      script.onerror = () => reject(new Error("the viewer's code was not run"));
      document.head.append(script);
    });
  }

  // Rows and planes are counted downwards, as in the still pictures.
  const affine = [spacing[2], 0, 0, 0, 0, -spacing[1], 0, 0, 0, 0, -spacing[0], 0, 0, 0, 0, 1];
  async function add(nv, name, options) {
    const sizes = [width, height, depth];
    const file = niivue.NVImage.createNiftiArray(sizes, [...spacing].reverse(), affine, 2, bytes[name]);
    const image = await niivue.NVImage.loadFromUrl({ url: file.buffer, name: `${name}.nii`, cal_min: 1, cal_max: 255, ...options });
    nv.addVolume(image);
    return image;
  }

  async function open() {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2");
    await run(await unpack("niivue"));
    bytes = {};
    for (const name of [...times, "masks", ...(limit ? ["field"] : [])]) bytes[name] = await unpack(`volume-${name}`);
    viewer.hidden = false;
    layout();
    const made = {};
    for (const time of times) {
      const nv = new niivue.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [1, 0.76, 0.2, 0.9], crosshairWidth: 1, crosshairWidthUnit: "px", isOrientationTextVisible: false,
        sagittalNoseLeft: true, isNearestInterpolation: true, multiplanarShowRender: 0, dragAndDropEnabled: false, scrollRequiresFocus: true,
        dragMode: 0, logLevel: "error", loadingText: "", clipPlaneHotKey: "", viewModeHotKey: "", tileMargin: 6, multiplanarPadPixels: 6,
        isForceMouseClickToVoxelCenters: true,
      });
      await nv.attachToCanvas(viewer.querySelector(`.${time} canvas`));
      await add(nv, time, { colormap: "gray" });
      nv.onLocationChange = ({ frac }) => go([frac[0] * width, (1 - frac[1]) * height, (1 - frac[2]) * depth].map(Math.floor), time);
      made[time] = nv;
    }
    shown = made;
    narrow.addEventListener("change", layout);
    new ResizeObserver(layout).observe(stage);
    layout();
    setWindow("tissue");
    setPosition([centre[2], centre[1], centre[0]]);
  }

  function start() {
    starting ??= open().catch((error) => {
      viewer.hidden = true;
      const said = document.getElementById("viewer-said");
      said.textContent = `The viewer could not be started: ${error.message}. The still pictures below show the same volume.`;
      said.hidden = false;
    });
    return starting;
  }

  function layout() {
    const [x, y, z] = [width * spacing[2], height * spacing[1], depth * spacing[0]];
    const shape = narrow.matches ? [x + y, y + z] : [2 * x + y, Math.max(y, z)];
    stage.style.aspectRatio = `${shape[0]} / ${shape[1]}`;
    stage.style.maxHeight = "78vh";
    if (!shown) return;
    for (const time of times) {
      shown[time].setMultiplanarLayout(narrow.matches ? 2 : 3);
      shown[time].resizeListener();
    }
    swipe();
  }

  // One swipe for all three planes: each shows the volume before in its left part.
  function swipe() {
    const share = Number(find("swipe").value) / 100;
    const ratio = shown.before.uiData.dpr || 1;
    const parts = [];
    const edges = stage.querySelectorAll(".edge");
    const tiles = shown.before.screenSlices.filter((tile) => tile.axCorSag < 3).map((tile) => [...tile.leftTopWidthHeight].map((n) => n / ratio));
    edges.forEach((edge, i) => {
      const [left, top, across, down] = tiles[i] ?? [0, 0, 0, 0];
      const cut = left + across * share;
      parts.push(`M${left - 4},${top - 4}H${cut}V${top + down + 4}H${left - 4}Z`);
      Object.assign(edge.style, { left: `${cut}px`, top: `${top}px`, height: `${down}px` });
      edge.hidden = share === 0 || share === 1 || !tiles[i];
    });
    viewer.querySelector(".before").style.clipPath = share === 1 ? "" : `path("${parts.join("") || "M0,0Z"}")`;
    names[0].hidden = share === 0;
    names[1].hidden = share === 1;
    for (const button of viewer.querySelectorAll("[data-swipe]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.swipe) === Number(find("swipe").value)));
    }
  }

  function setSwipe(value) {
    find("swipe").value = value;
    swipe();
  }

  const clamp = (value, length) => Math.max(0, Math.min(Math.round(value), length - 1));

  // Both canvases, the sliders and the line below show the place of the cross-hair: pixels (x, y, z) of the grid.
  function go(found, source) {
    const place = [clamp(found[0], width), clamp(found[1], height), clamp(found[2], depth)];
    for (const time of times) {
      if (time === source) continue;
      shown[time].scene.crosshairPos = [(place[0] + 0.5) / width, 1 - (place[1] + 0.5) / height, 1 - (place[2] + 0.5) / depth];
      shown[time].drawScene();
    }
    sliders.forEach((slider, i) => { slider.value = place[i]; });
    tell(place);
  }
  const setPosition = (place) => go(place, null);
  const position = () => sliders.map((slider) => Number(slider.value));

  // An intensity with the digits that 255 grey levels have.
  const digits = Math.max(0, 3 - Math.ceil(Math.log10(range.after[1] - range.after[0])));
  const intensity = (level, [low, high]) => (low + ((level - 1) / 254) * (high - low)).toFixed(digits).replace(/^-(0\.?0*)$/, "$1");

  function tell([x, y, z]) {
    const plane = planes[0] + z * planes[1];
    const section = sectionOf(plane);
    const at = x + width * (y + height * z);
    const value = (name) => {
      const level = bytes[name][at];
      if (level === 0) return "no value";
      return (level === 255 ? "at least " : level === 1 ? "at most " : "") + intensity(level, range[name]);
    };
    const [row, column] = [y, x].map((n, i) => Math.round(voxels.origin[i] + (n + 0.5) * voxels.size - 0.5));
    const said = [`z ${plane}, y ${row}, x ${column}`, section ? `section ${section[0]}` : "", `before ${value("before")}`, `after ${value("after")}`];
    if (limit) said.push(`field ${shownNumber(limit ** (((bytes.field[at] - 1) / 254) * 2 - 1))}`);
    said.push(["", "tissue", "agarose"][bytes.masks[at]]);
    document.getElementById("readout").textContent = said.filter(Boolean).join(" · ");
    sliders.forEach((slider, i) => { slider.nextElementSibling.textContent = [column, row, plane][i]; });
  }

  async function overlay(name, on) {
    for (const time of times) {
      const nv = shown[time];
      let number = nv.volumes.findIndex((volume) => volume.name === `${name}.nii`);
      if (number < 0 && on) {
        if (name === "field") {
          const [R, G, B] = [0, 1, 2].map((i) => colours.map((colour) => colour[i]));
          nv.addColormap("field", { R, G, B, A: colours.map(() => 255), I: colours.map((_c, i) => Math.round((255 * i) / (colours.length - 1))) });
          await add(nv, name, { colormap: "field", opacity: 0.6 });
        } else {
          const image = await add(nv, name, { opacity: 0.4 });
          image.setColormapLabel({ R: [0, 255, 76], G: [0, 159, 201], B: [0, 28, 240], A: [0, 255, 255], I: [0, 1, 2], labels: ["", "tissue", "agarose"] });
          nv.updateGLVolume();
        }
        number = nv.volumes.findIndex((volume) => volume.name === `${name}.nii`);
      }
      if (number > 0) nv.setOpacity(number, on ? (name === "field" ? 0.6 : 0.4) : 0);
    }
  }

  // The window is set in the units of the result; each volume has its own range of grey levels.
  function setWindow(name) {
    const set = windows[name] ?? null;
    for (const button of viewer.querySelectorAll("[data-window]")) button.setAttribute("aria-pressed", String(button.dataset.window === name));
    if (set) [find("low").value, find("high").value] = set;
    const ends = [Number(find("low").value), Number(find("high").value)];
    if (ends[1] <= ends[0]) ends[1] = ends[0] + 1;
    for (const time of times) {
      Object.assign(shown[time].volumes[0], { cal_min: ends[0], cal_max: ends[1] });
      shown[time].updateGLVolume();
    }
    for (const [slider, level] of [["low", ends[0]], ["high", ends[1]]]) {
      find(slider).nextElementSibling.textContent = intensity(level, range.after);
    }
  }

  window.viewerGo = async (plane) => {
    await start();
    if (!shown) return;
    const [x, y] = position();
    setPosition([x, y, (plane - planes[0]) / planes[1]]);
    viewer.scrollIntoView({ block: "nearest" });
  };

  find("swipe").addEventListener("input", swipe);
  sliders.forEach((slider) => slider.addEventListener("input", () => setPosition(position())));
  for (const name of ["low", "high"]) find(name).addEventListener("input", () => setWindow(""));
  for (const name of ["field", "masks"]) find(name)?.addEventListener("change", (event) => overlay(name, event.target.checked));
  viewer.addEventListener("click", (event) => {
    const data = event.target.dataset;
    if (data.swipe) setSwipe(data.swipe);
    if (data.window) setWindow(data.window);
  });
  document.addEventListener("keydown", (event) => {
    if (!shown || event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input:not([type="range"]), textarea')) return;
    const [x, y, z] = position();
    if (event.key === "b") setSwipe(Number(find("swipe").value) > 50 ? 0 : 100);
    else if (event.key === ",") setPosition([x, y, z - 1]);
    else if (event.key === ".") setPosition([x, y, z + 1]);
    else return;
    event.preventDefault();
  });
  for (const link of document.querySelectorAll("a[data-plane]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      window.viewerGo(Number(link.dataset.plane));
    });
  }
  window.viewer = { start, state: () => ({ place: position(), swipe: Number(find("swipe").value), shown }) };
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    start();
  }, { rootMargin: "300px" }).observe(document.getElementById("look"));
})();
