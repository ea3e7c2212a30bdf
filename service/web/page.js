// The page: ask about images, show the verdicts, watch the traffic. What it knows of a model it reads from the server.

const WATCH_EVERY_MS = 3000;
const WATCH_SOON_MS = 300;
const ASKED_AT_ONCE = 4;
const SENTENCES_KEPT = 10;
const TALL = { height: 220, top: 26, bottom: 24 };

const $ = (id) => document.getElementById(id);
let key = ""; // gone with the page
let model = null; // as GET /models/{model} has it
let wanted = ""; // the model chosen last, which may not have answered yet

// Words and numbers

const label = ({ name, version }) => `${name}@${version}`;
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`; // on one line
const sure = (confidence) => (confidence < 0.9995 ? `${percent(confidence)} sure` : "over 99.9\u00a0% sure");
const whole = (count) => count.toLocaleString("en");
const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
const spoken = (score) => score.replaceAll("_", " ");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const images = (count) => `${whole(count)} image${count === 1 ? "" : "s"}`;
const falseFlags = ({ k, n }) => k / (n + 1);
const sum = (counts) => counts.reduce((total, count) => total + count, 0);

function say(element, text) {
  if (element.textContent !== text) element.textContent = text; // what stays the same is not read aloud again
}

function outOf(count, all) {
  const share = count === all ? `all ${whole(all)}` : `${Math.floor((100 * count) / all)} of 100`;
  return `${share} in-distribution images`;
}

function inWords({ p_value, is_ood }, { n }) {
  const notAbove = Math.round(p_value * (n + 1)) - 1; // p = (1 + those not above) / (n + 1)
  const above = n - notAbove;
  if (is_ood) return `Lower than ${outOf(above, n)}: flagged as out of distribution.`;
  if (above > notAbove) return `Lower than ${outOf(above, n)}, but above the threshold: not flagged.`;
  return `Higher than ${outOf(notAbove, n)}: not flagged.`;
}

// The server

const NO_ANSWER = 0; // for a status
const UNSENT = null;

class Refusal extends Error {
  constructor(message, status = NO_ANSWER) {
    super(/[.!?]$/.test(message) ? capital(message) : `${capital(message)}.`);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { method: body ? "POST" : "GET", body, headers, cache: "no-store" };
  const reply = await fetch(path, options).catch(() => null);
  if (!reply) throw new Refusal("the server does not answer");
  const content = await reply.json().catch(() => null);
  if (reply.ok && content) return content;
  if (reply.status === 401) lock();
  throw new Refusal(content?.error?.message ?? `the server answered with status ${reply.status}`, reply.status);
}

// Charts: x in percent of the width, y in pixels

function bucketsOf(ends, counts) {
  const total = sum(counts) || 1;
  return counts.map((count, at) => {
    const [from, to] = [ends[at], ends[at + 1]];
    return { from, to, density: count / total / (to - from) };
  });
}

const widest = (edges) => Math.max(...edges.slice(1).map((edge, at) => edge - edges[at]));

/** The open ends of a histogram become buckets as wide as its widest. */
function scoreBuckets({ edges, counts }) {
  const step = widest(edges);
  return bucketsOf([edges[0] - step, ...edges, edges.at(-1) + step], counts);
}

/** p-values lie in (0, 1]; edges between even steps are left out. */
function pValueBuckets({ edges, counts }) {
  const step = widest(edges);
  const [ends, merged] = [[0], [0]];
  edges.forEach((edge, at) => {
    merged[merged.length - 1] += counts[at];
    if (Math.abs(edge / step - Math.round(edge / step)) > 1e-6) return;
    ends.push(edge);
    merged.push(0);
  });
  return bucketsOf(ends, merged.slice(0, -1));
}

/** Where something is, with room below it, since outliers score lower. */
function spanOf(buckets, isUsed) {
  const used = buckets.map(isUsed);
  const [first, last] = [used.indexOf(true), used.lastIndexOf(true)];
  const room = Math.ceil((last - first + 1) / 4);
  return { from: buckets[Math.max(first - room, 0)].from, to: buckets[last].to };
}

class Chart {
  constructor(svg, { from, to }, { height, top, bottom, peak }) {
    Object.assign(this, { svg, from, to, top, base: height - bottom, peak });
    svg.replaceChildren();
    svg.setAttribute("height", height);
  }

  x(value) {
    return Math.min(Math.max((100 * (value - this.from)) / (this.to - this.from), 0), 100);
  }

  y(density) {
    return this.base - (density / this.peak) * (this.base - this.top);
  }

  add(name, attributes, text = "") {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [attribute, value] of Object.entries(attributes)) shape.setAttribute(attribute, value);
    shape.textContent = text;
    this.svg.append(shape);
  }

  line(kind, x1, y1, x2, y2) {
    this.add("line", { class: kind, x1: `${x1}%`, y1, x2: `${x2}%`, y2 });
  }

  text(kind, value, y, text) {
    const x = this.x(value);
    const anchor = x < 8 ? "start" : x > 92 ? "end" : "middle";
    this.add("text", { class: kind, x: `${x}%`, y, "text-anchor": anchor }, text);
  }

  bars(buckets, flaggedUpTo) {
    for (const { from, to, density } of buckets.filter((bucket) => bucket.density > 0)) {
      const [left, y] = [this.x(from), this.y(density)];
      const kind = (from + to) / 2 <= flaggedUpTo ? "flagged" : "";
      const size = { width: `${this.x(to) - left}%`, height: Math.max(this.base - y, 1) };
      this.add("rect", { class: kind, x: `${left}%`, y: Math.min(y, this.base - 1), ...size });
    }
    this.line("base", 0, this.base, 100, this.base);
  }

  outline(buckets) {
    let last = this.base;
    for (const { from, to, density } of buckets) {
      const y = this.y(density);
      if (y !== last) this.line("outline", this.x(from), last, this.x(from), y);
      if (density > 0) this.line("outline", this.x(from), y, this.x(to), y);
      last = y;
    }
  }

  /** Number the axis at multiples of a round step of these edges. */
  ticks(edges) {
    const step = widest(edges);
    const every = [1, 2, 5, 10, 20].find((times) => (this.to - this.from) / (times * step) <= 8) * step;
    const isMultiple = (edge) => Math.abs(edge / every - Math.round(edge / every)) < 1e-6;
    const shown = edges.filter((edge) => edge >= this.from && edge <= this.to && isMultiple(edge));
    for (const edge of shown) this.text("tick", edge, this.base + 18, number(edge));
  }

  threshold(value) {
    this.line("threshold", this.x(value), this.top - 6, this.x(value), this.base);
  }
}

const peakOf = (...histograms) => Math.max(...histograms.flat().map(({ density }) => density));

/** Where one image lies among the calibration images. */
function drawVerdict(svg, value, score, calibration) {
  const buckets = scoreBuckets(calibration);
  const span = spanOf(buckets, ({ from, to, density }) => density > 0 || (from < value && value <= to));
  const chart = new Chart(svg, span, { height: 96, top: 26, bottom: 20, peak: peakOf(buckets) });
  const { threshold } = calibration;
  chart.bars(buckets, threshold);
  chart.threshold(threshold);
  chart.add("text", { class: "side", x: `${chart.x(threshold)}%`, dx: -8, y: 92, "text-anchor": "end" }, "← flagged");
  chart.add("text", { x: `${chart.x(threshold)}%`, dx: 8, y: 92 }, "in distribution →");
  chart.line("pin", chart.x(value), 20, chart.x(value), chart.base);
  chart.add("circle", { cx: `${chart.x(value)}%`, cy: 20, r: 4 });
  chart.text("value", value, 11, number(value));
  svg.setAttribute(
    "aria-label",
    `This image's ${score}, ${number(value)}, among those of ${whole(calibration.n)} in-distribution images; ` +
      `up to ${number(threshold)} they are flagged.`,
  );
}

// Verdicts

const waiting = [];
let asked = 0;

function enqueue(job) {
  waiting.push(job);
  begin();
}

function begin() {
  while (asked < ASKED_AT_ONCE && waiting.length) {
    asked += 1;
    waiting.shift()().finally(() => {
      asked -= 1;
      begin();
    });
  }
}

function take(files) {
  if (!model || !files.length) return;
  const cards = files.map((file) => cardOf(file));
  $("verdicts").prepend(...cards);
  $("answers").hidden = false;
  count();
}

function cardOf(file) {
  const card = $("verdict").content.firstElementChild.cloneNode(true);
  card.querySelector(".name").textContent = file.name;
  card.querySelector(".again").addEventListener("click", () => enqueue(() => judge(card, file)));
  picture(card.querySelector("canvas"), file);
  enqueue(() => judge(card, file));
  return card;
}

/** Draw an image as it is, small ones pixel by pixel; what the browser can't read stays blank. */
async function picture(canvas, file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return;
  const scale = 192 / Math.max(bitmap.width, bitmap.height);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

async function judge(card, file) {
  const by = model;
  const all = by.verdict === "negative_energy" ? "" : "?scores=all";
  card.className = "";
  card.querySelector(".name").textContent = $("chooser").hidden ? file.name : `${file.name}, by ${label(by)}`;
  card.querySelector(".again").hidden = true;
  try {
    await requireReadable(file);
    const { predictions } = await ask(`models/${label(by)}/predict${all}`, file);
    answer(card, predictions[0], by);
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    refuse(card, refusal);
  }
  tell(card);
  count();
  watchIn(WATCH_SOON_MS);
}

/** A folder that was dropped seems to be a file until it is read. */
async function requireReadable(file) {
  const isReadable = await file.slice(0, 1).arrayBuffer().then(() => true, () => false);
  if (!isReadable) throw new Refusal("it can't be read; if it is a folder, drop the images in it", UNSENT);
}

function answer(card, prediction, by) {
  const calibration = by.calibrations[by.verdict];
  const value = prediction.scores?.[by.verdict].value ?? prediction.negative_energy;
  const certainty = sure(prediction.confidence);
  const [headline, aside] = prediction.is_ood
    ? ["Out of distribution", `It would have said ${prediction.class_name}, ${certainty}.`]
    : [prediction.class_name, certainty];
  const small = document.createElement("small");
  small.textContent = aside;
  card.className = prediction.is_ood ? "ood" : "known";
  card.querySelector(".answer").replaceChildren(headline, " ", small);
  card.querySelector(".words").textContent = inWords(prediction, calibration);
  const chart = card.querySelector("svg");
  chart.removeAttribute("hidden");
  drawVerdict(chart, value, spoken(by.verdict), calibration);
}

function refuse(card, refusal) {
  card.className = "refused";
  card.querySelector(".answer").textContent = "No verdict";
  card.querySelector(".words").textContent = refusal.message;
  const mayPass = [NO_ANSWER, 401, 408, 429].includes(refusal.status) || refusal.status >= 500;
  card.querySelector(".again").hidden = !mayPass;
}

/** Say a verdict to who does not see it. */
function tell(card) {
  const sentence = document.createElement("p");
  const part = (name) => card.querySelector(name).textContent;
  sentence.textContent = `${part(".name")}: ${part(".answer")}. ${part(".words")}`;
  $("said").append(sentence);
  while ($("said").children.length > SENTENCES_KEPT) $("said").firstElementChild.remove();
}

function count() {
  const all = $("verdicts").children.length;
  const flagged = $("verdicts").querySelectorAll(".ood").length;
  say($("tally"), `${images(all)}, ${whole(flagged)} flagged`);
}

// Watching

let timer = 0;

function watchIn(delay) {
  clearTimeout(timer);
  if (model && !document.hidden) timer = setTimeout(watch, delay);
}

async function watch() {
  const by = model;
  try {
    const seen = await ask(`models/${label(by)}/watch`);
    if (by === model) show(seen);
    pulse(document.hidden ? "paused" : "live", !document.hidden);
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    pulse(refusal.message, false);
    if (refusal.status === 404) return start(); // another version is served now
  }
  return watchIn(WATCH_EVERY_MS);
}

function pulse(text, beating) {
  say($("pulse"), text);
  $("pulse").classList.toggle("beating", beating);
}

function show(seen) {
  const { window: last, cusum } = seen;
  const rate = falseFlags(model.calibrations[model.verdict]);
  const none = last.images === 0;
  say($("ood-rate"), none ? "–" : percent(last.flagged_ratio));
  say(
    $("ood-rate-words"),
    none ? "no images yet" : `of the last ${images(last.images)}; in distribution it would be ${percent(rate)}`,
  );
  const share = last.ood_share;
  say($("ood-share"), share ? percent(share.estimate) : "–");
  const unknown = none ? "no images yet" : "the model states no detection rate";
  say($("ood-share-words"), share ? `estimated; 95 % interval: ${percent(share.lower)} to ${percent(share.upper)}` : unknown);
  say($("alarm"), cusum.shifted ? "Shifted" : "Quiet");
  $("alarm").classList.toggle("ood", cusum.shifted);
  const times = `${whole(cusum.shifts)} time${cusum.shifts === 1 ? "" : "s"}`;
  say(
    $("alarm-words"),
    `evidence of a shift at ${percent(cusum.statistic / cusum.limit)} of what rings it; rang ${times} so far`,
  );
  say($("throughput"), `${seen.images_per_s.toLocaleString("en", { maximumSignificantDigits: 2 })} /s`);
  say($("throughput-words"), `images over the last minute; ${whole(seen.images)} in all`);
  say($("assumption"), seen.assumption);
  drawTraffic(seen);
  $("live").hidden = false;
}

function drawTraffic(seen) {
  drawEnergies(seen);
  drawPValues(seen);
}

function drawEnergies(seen) {
  const calibration = model.calibrations.negative_energy;
  const judges = model.verdict === "negative_energy"; // another score's flags don't follow from energies
  const last = seen.window.negative_energy;
  const [before, energies] = [scoreBuckets(calibration), scoreBuckets(last)];
  const span = spanOf(before, ({ density }, at) => density > 0 || energies[at].density > 0);
  const chart = new Chart($("energies"), span, { ...TALL, peak: peakOf(before, energies) });
  chart.bars(energies, judges ? calibration.threshold : -Infinity);
  chart.outline(before);
  chart.ticks(calibration.edges);
  if (judges) {
    chart.threshold(calibration.threshold);
    chart.text("side", calibration.threshold, 14, `flagged up to ${number(calibration.threshold)}`);
  }
  say($("energies-words"), lastImages(last));
  say($("calibration-words"), `the ${whole(calibration.n)} images that it was calibrated on`);
  describe($("energies"), "Negative energies", last, [
    `half of them lie ${halfOf(last)}, of the calibration images ${halfOf(calibration)}`,
    judges && flaggedIn(shareUpTo(last, calibration.threshold), number(calibration.threshold), falseFlags(calibration)),
  ]);
}

function drawPValues(seen) {
  const last = seen.window.p_value;
  const even = pValueBuckets(last);
  const rate = falseFlags(model.calibrations[model.verdict]);
  const chart = new Chart($("p-values"), { from: 0, to: 1 }, { ...TALL, peak: Math.max(2, peakOf(even)) });
  chart.bars(even, rate);
  chart.line("outline", 0, chart.y(1), 100, chart.y(1)); // the density of what is uniform in (0, 1]
  chart.ticks([0, 0.2, 0.4, 0.6, 0.8, 1]);
  chart.threshold(rate);
  chart.add("text", { class: "side", x: `${chart.x(rate)}%`, dx: 6, y: 14 }, `flagged up to ${rate.toFixed(3)}`);
  say($("p-values-words"), lastImages(last));
  describe($("p-values"), "p-values", last, [
    `half of them lie ${halfOf(last)}, in distribution up to 0.5`,
    flaggedIn(seen.window.flagged_ratio, rate.toFixed(3), rate),
  ]);
}

/** Those of a histogram, which may be fewer than the window's: a state of before may lack their energies. */
function lastImages({ counts }) {
  const total = sum(counts);
  return total ? `the last ${images(total)}` : "no images yet";
}

/** Where the lower half of a histogram ends, as far as its edges tell. */
function halfOf({ edges, counts }) {
  let upTo = 0;
  const at = counts.findIndex((count) => (upTo += count) >= sum(counts) / 2);
  return at < edges.length ? `up to ${number(edges[at])}` : `above ${number(edges.at(-1))}`;
}

/** An edge's: the threshold is one. */
const shareUpTo = ({ edges, counts }, edge) => sum(counts.slice(0, edges.indexOf(edge) + 1)) / sum(counts);

const flaggedIn = (share, threshold, expected) =>
  `${percent(share)} lie up to the threshold, ${threshold}, in distribution ${percent(expected)}`;

/** Say a chart's shape to who does not see it. */
function describe(svg, what, histogram, shape) {
  const words = sum(histogram.counts) ? `: ${shape.filter(Boolean).join("; ")}` : "";
  svg.setAttribute("aria-label", `${what} of ${lastImages(histogram)}${words}.`);
}

// Which model, with which key

async function start() {
  try {
    const { models } = await ask("models");
    const served = models.filter(({ state }) => state !== "failed");
    offer(models);
    await choose(label(served[0]));
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    if (refusal.status === 401) return complain(key && "The server does not know this key.");
    complain(refusal.message);
    setTimeout(start, WATCH_EVERY_MS);
  }
}

function complain(text) {
  say($("trouble"), text);
  $("trouble").hidden = !text;
}

function offer(models) {
  const options = models.map((entry) => {
    const failed = entry.state === "failed";
    const option = new Option(failed ? `${entry.name}: not loaded` : label(entry), label(entry));
    option.disabled = failed;
    return option;
  });
  $("models").replaceChildren(...options);
  $("chooser").hidden = models.length < 2;
}

async function choose(name) {
  wanted = name;
  const found = await ask(`models/${name}`);
  if (wanted !== name) return; // another was chosen meanwhile
  model = found;
  complain("");
  $("models").value = name;
  const { verdict, calibrations, description, runtime } = model;
  const { threshold } = calibrations[verdict];
  say($("facts"), `${label(model)}: ${description}. It flags a ${spoken(verdict)} up to ${number(threshold)}. Runs on ${runtime}.`);
  $("lock").hidden = true;
  $("ask").hidden = false;
  await watch();
}

function lock() {
  if (!$("lock").hidden) return;
  $("lock").hidden = false;
  $("token").focus();
}

$("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = String.fromCharCode(...new TextEncoder().encode($("token").value)); // a header takes bytes
  $("token").value = "";
  start();
});
$("models").addEventListener("change", async ({ target }) => {
  const name = target.value;
  try {
    await choose(name);
  } catch (refusal) {
    if (wanted !== name) return; // another was chosen meanwhile
    complain(refusal.message);
    if (model) target.value = label(model);
  }
});
$("files").addEventListener("change", ({ target }) => {
  take([...target.files]);
  target.value = ""; // the same file may be chosen again
});
$("samples").addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  const reply = await fetch(button.value).catch(() => null);
  if (!reply?.ok) return complain("The sample can't be fetched: the server does not answer.");
  complain("");
  const content = await reply.blob();
  return take([new File([content], button.value.split("/").pop(), { type: content.type })]);
});
$("clear").addEventListener("click", () => {
  $("verdicts").replaceChildren();
  $("answers").hidden = true;
  $("files").focus();
});

// Images from elsewhere

const carriesFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");

document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  take([...event.dataTransfer.files]);
});
document.addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files]));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) pulse("paused", false);
  watchIn(0);
});

start();
