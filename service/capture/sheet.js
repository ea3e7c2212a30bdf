"use strict";
// The page is complete without this; it orders, groups and filters what is there.
const controls = document.getElementById("controls");
const main = document.getElementById("images");
const items = [...main.querySelectorAll("li")];
const classes = document.getElementById("classes");

function ordered(order) {
  const key = order.replace("-", "");
  const sign = order.startsWith("-") ? -1 : 1;
  const value = (item) => (key === "time" ? Date.parse(item.dataset.time) : Number(item.dataset[key]));
  return [...items].sort((a, b) => sign * (value(a) - value(b)));
}

function grouped(chosen) {
  const groups = new Map();
  for (const item of chosen) {
    if (!groups.has(item.dataset.class)) groups.set(item.dataset.class, []);
    groups.get(item.dataset.class).push(item);
  }
  return groups;
}

function section(name, members, at) {
  const made = document.createElement("section");
  const list = document.createElement("ul");
  list.className = "grid";
  list.append(...members);
  if (name !== null) {
    const heading = document.createElement("h2");
    heading.id = `class-${at}`;
    heading.tabIndex = -1;
    heading.textContent = name;
    made.append(heading);
  }
  made.append(list);
  return made;
}

function link(name, members, at) {
  const entry = document.createElement("li");
  const anchor = document.createElement("a");
  anchor.href = `#class-${at}`;
  anchor.textContent = name;
  entry.append(anchor, ` ${members.length}`);
  return entry;
}

function show() {
  const kind = controls.elements.kind.value;
  const chosen = ordered(controls.elements.order.value).filter(
    (item) => kind === "all" || item.classList.contains(kind),
  );
  const groups = controls.elements.grouped.checked ? [...grouped(chosen)] : [[null, chosen]];
  main.replaceChildren(...groups.map(([name, members], at) => section(name, members, at)));
  const named = groups.filter(([name]) => name !== null);
  classes.replaceChildren(...named.map(([name, members], at) => link(name, members, at)));
  controls.querySelector("output").textContent = `${chosen.length} ${chosen.length === 1 ? "image" : "images"}`;
}

if (items.length > 1) {
  controls.hidden = false;
  controls.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.reset();
}
