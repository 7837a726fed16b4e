// One image or two, the heat map of a word over them, a comparison by slider or by flick, and pointing.
// Everything shown comes in `data`; the one thing that goes back is where somebody pointed.

const clamp = (value) => Math.min(1, Math.max(0, value));

function element(name, className, parent) {
  const made = document.createElement(name);
  if (className) made.className = className;
  parent.appendChild(made);
  return made;
}

function layer(frame, pane, data) {
  const group = element("div", "layer", frame);
  group.style.cssText = "position:absolute;inset:0;pointer-events:none";
  const image = element("img", data.pixelated ? "pixels" : "", group);
  image.src = pane.src;
  image.alt = pane.alt;
  if (pane.heat) {
    image.classList.add("under");
    const heat = element("img", "heat", group);
    heat.src = pane.heat;
    heat.alt = "";
    heat.style.opacity = data.opacity;
  }
  return group;
}

function mark(frame, point) {
  if (!point) return;
  const ring = element("div", "mark", frame);
  ring.style.left = 100 * point.x + "%";
  ring.style.top = 100 * point.y + "%";
}

// Click, tap, or move with the arrow keys; `which` says whose maps are meant.
function pointing(frame, data, which, send) {
  const from = (event) => {
    const box = frame.getBoundingClientRect();
    return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
  };
  frame.onclick = (event) => send({ ...from(event), pane: which(from(event)) });
  frame.onkeydown = (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [dx, dy] = moves[event.key];
    const old = data.point || { x: 0.5, y: 0.5 };
    const now = { x: clamp(old.x + dx / 16), y: clamp(old.y + dy / 16) };
    send({ ...now, pane: which(now) });
  };
}

function frameOf(root, data, label, caption) {
  const pane = element("figure", "pane", root);
  const frame = element("div", "frame", pane);
  frame.style.aspectRatio = data.aspect;
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", label + " Click, or use the arrow keys, to rank the words at a position.");
  const text = element("figcaption", "", pane);
  for (const part of caption) element("span", "", text).textContent = part;
  return { pane, frame };
}

const shown = (pane) => [pane.label, pane.note || ""];

function one(root, data, send, pane, which) {
  const { frame } = frameOf(root, data, pane.alt, shown(pane));
  layer(frame, pane, data);
  mark(frame, data.point);
  pointing(frame, data, () => which, send);
}

function slider(root, data, send, kept) {
  const [front, back] = data.panes;
  const { pane, frame } = frameOf(root, data, front.alt, [back.label + " (left)", front.label + " (right)"]);
  layer(frame, front, data);
  const over = layer(frame, back, data);
  const line = element("div", "line", frame);
  mark(frame, data.point);
  const range = element("input", "", pane);
  range.type = "range";
  range.min = 0;
  range.max = 100;
  range.value = kept.split ?? 50;
  range.setAttribute("aria-label", "Where the plain image ends and the controlled one begins");
  const show = () => {
    kept.split = Number(range.value);
    over.style.clipPath = `inset(0 ${100 - kept.split}% 0 0)`;
    line.style.left = kept.split + "%";
  };
  range.oninput = show;
  show();
  pointing(frame, data, (at) => (100 * at.x < kept.split ? 1 : 0), send);
}

function flick(root, data, send, kept) {
  const at = kept.flicked ? 1 : 0;
  const { pane, frame } = frameOf(root, data, data.panes[at].alt, shown(data.panes[at]));
  layer(frame, data.panes[at], data);
  mark(frame, data.point);
  const swap = element("button", "", pane);
  swap.type = "button";
  swap.textContent = "Swap";
  swap.onclick = () => {
    kept.flicked = !kept.flicked;
    draw(root, data, send, kept);
    root.querySelector("button").focus();
  };
  pointing(frame, data, () => at, send);
}

function draw(root, data, send, kept) {
  root.replaceChildren();
  const [first, second] = data.panes;
  if (!second || data.mode === "one") one(root, data, send, first, first.which ?? 0);
  else if (data.mode === "slider") slider(root, data, send, kept);
  else if (data.mode === "flick") flick(root, data, send, kept);
  else data.panes.forEach((pane, number) => one(root, data, send, pane, number));
}

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  let root = parentElement.querySelector(".stage");
  if (!root) root = element("div", "stage", parentElement);
  root.kept ??= {};
  if (data) draw(root, data, (point) => setStateValue("point", point), root.kept);
}
