"use strict";
// Small tools: elements, numbers, text that is safe to look at. Texts of the corpus reach the page as text nodes alone.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** Makes an element with attributes and children; strings become text. */
function make(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Does the same for a shape of a picture. */
function shape(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (key === "onclick") element.addEventListener("click", value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    element.append(child);
  }
  return element;
}

function replace(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

const grouped = (n) =>
  Math.round(n)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ",");
const fixed = (value, digits) =>
  value === null || value === undefined ? "\u2013" : value.toFixed(digits).replace("-", "\u2212");
const signed = (value, digits) => {
  const text = fixed(value, digits);
  return value > 0 && Number(value.toFixed(digits)) !== 0 ? "+" + text : text;
};
const percent = (share, digits) => (share === null || share === undefined ? "\u2013" : fixed(100 * share, digits) + "%");
/** A short number for axes: at most three digits that say something. */
const short = (value) =>
  value === 0
    ? "0"
    : Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3
      ? value.toExponential(1).replace("e+", "e")
      : String(Number(value.toPrecision(3)));

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Controls, marks of direction, and what has no width: nothing of it is left to act on its neighbours.
const CONTROL =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\udb40[\udc00-\udc7f]/gu;

function controlPicture(text) {
  const code = text.codePointAt(0);
  if (code === 10) return "\u21b5";
  if (code === 9) return "\u21e5";
  if (code < 32) return String.fromCharCode(0x2400 + code);
  if (code === 127) return "\u2421";
  return "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
}

/** Text with pictures in place of controls. A mark that would sit on what is before gets a circle to sit on. */
function visible(text) {
  const shown = text.replace(CONTROL, controlPicture);
  return /^\p{M}/u.test(shown) ? "\u25cc" + shown : shown;
}

/** The same as nodes, where pictures can be told from text. */
function visibleNodes(text) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(CONTROL)) {
    if (match.index > last) nodes.push(visible(text.slice(last, match.index)));
    nodes.push(make("span", { class: "control" }, controlPicture(match[0])));
    last = match.index + match[0].length;
  }
  if (last < text.length) nodes.push(visible(text.slice(last)));
  return nodes;
}

/** A piece of text: how many ids it is of, the text, and how long it was where it was cut. */
const pieceOf = (piece) =>
  typeof piece === "string" ? { ids: 1, text: piece, chars: null } : { ids: piece[0], text: piece[1], chars: piece[2] };
const cutNote = (piece) => (piece.chars === null ? "" : "\u2026 (" + grouped(piece.chars) + " characters)");
const joined = (pieces) => pieces.map((piece) => pieceOf(piece).text + cutNote(pieceOf(piece))).join("");

const MAX_NAME = 200;
function nameOf(source) {
  if (source.name === null) return source.sources === 1 ? "1 other source" : grouped(source.sources) + " other sources";
  const name = visible(source.name);
  return name.length > MAX_NAME ? "\u2026" + name.slice(name.length - MAX_NAME) : name;
}

/** A table: columns are [heading, explanation, function of a row that gives a cell or a string], rows anything. */
function table(columns, rows, options) {
  const { caption, rowClass, sort, onsort } = options || {};
  const head = make(
    "tr",
    null,
    columns.map((column, index) => {
      const label = sort
        ? make("button", { type: "button", title: column[1], onclick: () => onsort(index) }, column[0])
        : make("span", { title: column[1] }, column[0]);
      const order = sort && sort.column === index ? (sort.down ? "descending" : "ascending") : null;
      return make("th", { scope: "col", "aria-sort": order, class: column[3] || null }, label);
    }),
  );
  const body = rows.map((row) =>
    make(
      "tr",
      { class: rowClass ? rowClass(row) : null },
      columns.map((column, index) => {
        const content = column[2](row);
        const name = index === 0 ? "th" : "td";
        return make(name, { scope: index === 0 ? "row" : null, class: column[3] || null }, content);
      }),
    ),
  );
  return make(
    "table",
    null,
    caption ? make("caption", null, caption) : null,
    make("thead", null, head),
    make("tbody", null, body),
  );
}

/** Fills a select with [value, label] pairs, and keeps what was chosen if it is still there. */
function choices(select, pairs) {
  const before = select.value;
  replace(
    select,
    pairs.map(([value, label]) => make("option", { value }, label)),
  );
  if (pairs.some(([value]) => String(value) === before)) select.value = before;
}
