// Builds elements without ever parsing HTML, so that no text of a message can become markup.

const SVG = "http://www.w3.org/2000/svg";

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child);
  }
}

/** Make an element: `on` holds listeners, `data` the data attributes, `style` CSS properties, the rest are attributes. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (name === "data") for (const [key, text] of Object.entries(value)) element.dataset[key] = text;
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

/** Replace the children of `element`, leaving out null, false and the empty string. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// Line icons on a 24 px grid, one path each.
const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  left: "M14.5 5.5L8 12l6.5 6.5",
  right: "M9.5 5.5L16 12l-6.5 6.5",
  down: "M6 9.5l6 6 6-6",
  plus: "M12 5.5v13M5.5 12h13",
  check: "M5.5 12.5l4.5 4.5 8.5-10",
  open: "M13.5 5H19v5.5M19 5l-8 8M10.5 6H7a2 2 0 0 0-2 2v9a2 2 0 0 0 2 2h9a2 2 0 0 0 2-2v-3.5",
  image: "M6 4.5h12a1.5 1.5 0 0 1 1.5 1.5v12a1.5 1.5 0 0 1-1.5 1.5H6A1.5 1.5 0 0 1 4.5 18V6A1.5 1.5 0 0 1 6 4.5zM5 16.5l4.5-4.5 4 4 2.5-2.5 3.5 3.5M15.2 9.2h.01",
  file: "M7 3.5h6.5L18.5 8.5V19A1.5 1.5 0 0 1 17 20.5H7A1.5 1.5 0 0 1 5.5 19V5A1.5 1.5 0 0 1 7 3.5zM13.5 3.5v5h5",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6z",
  alert: "M12 8v5M12 16.2h.01M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z",
  info: "M12 11v5.5M12 7.8h.01M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z",
  reroll: "M19.5 5v5h-5M4.5 19v-5h5M6.3 9.5a6.5 6.5 0 0 1 11.2-1.8l2 2.3M17.7 14.5a6.5 6.5 0 0 1-11.2 1.8l-2-2.3",
  dice: "M6.5 4.5h11a2 2 0 0 1 2 2v11a2 2 0 0 1-2 2h-11a2 2 0 0 1-2-2v-11a2 2 0 0 1 2-2zM8.2 8.6a.4.4 0 1 0 .8 0 .4.4 0 1 0-.8 0M11.6 12a.4.4 0 1 0 .8 0 .4.4 0 1 0-.8 0M15 15.4a.4.4 0 1 0 .8 0 .4.4 0 1 0-.8 0",
  pencil: "M14.5 6l3.5 3.5M5 19l.9-4L16 4.9a1.9 1.9 0 0 1 2.7 0l.4.4a1.9 1.9 0 0 1 0 2.7L9 18.1z",
  trash: "M5 7h14M9.5 7V5.5a1 1 0 0 1 1-1h3a1 1 0 0 1 1 1V7M7 7l.8 11a1.5 1.5 0 0 0 1.5 1.5h5.4a1.5 1.5 0 0 0 1.5-1.5L17 7M10.3 10.5v5.5M13.7 10.5v5.5",
  stop: "M8 7h8a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H8a1 1 0 0 1-1-1V8a1 1 0 0 1 1-1z",
  search: "M10.8 4.5a6.3 6.3 0 1 1 0 12.6 6.3 6.3 0 0 1 0-12.6zM15.5 15.5l4.5 4.5",
  star: "M12 4l2.4 5.1 5.6.7-4.1 3.9 1 5.6-4.9-2.7-4.9 2.7 1-5.6L4 9.8l5.6-.7z",
  mark: "M7.5 7.5h9l-9 9h9",
};

/** Draw one of the line icons; it is decoration, the name of its button says what it does. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" })) svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

// The emoji that bots put on buttons, drawn in the page's own line: they look the same where no emoji font is installed.
const EMOJI_ICONS = {
  "🔁": "reroll", "🔄": "reroll", "♻": "reroll", "🎲": "dice", "✏": "pencil", "📝": "pencil", "🖊": "pencil", "ℹ": "info", "🔍": "search", "🔎": "search",
  "🗑": "trash", "❌": "close", "✖": "close", "✕": "close", "🚫": "close", "🛑": "stop", "⏹": "stop", "⭐": "star", "✅": "check", "✔": "check", "🖼": "image", "➕": "plus",
};

/** Draw the emoji of a component: an icon where the page has one, the character else, a custom emoji by its name. */
export function emoji(value) {
  if (!value) return null;
  if (value.id) return h("span", { class: "emoji" }, `:${value.name}:`);
  const known = EMOJI_ICONS[(value.name ?? "").replaceAll("\ufe0f", "")];
  return known ? icon(known) : h("span", { class: "emoji", "aria-hidden": "true" }, value.name ?? "");
}

/** Say a byte count as a person reads it. */
export function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

const TONES = 6;

/** Draw the round sign of a person (their initial on one of six tones) or of the bot (its mark). */
export function avatar(name, isBot) {
  if (isBot) return h("span", { class: "avatar avatar-bot", "aria-hidden": "true" }, icon("mark"));
  const tone = [...name].reduce((sum, character) => sum * 31 + character.codePointAt(0), 0) % TONES;
  return h("span", { class: `avatar tone-${tone}`, "aria-hidden": "true" }, [...name][0]?.toUpperCase());
}

/** Give the focus back to where it was before a dialog opened. */
export function restoreFocus(element) {
  if (!element?.isConnected) return;
  // The browser has already focused it while it still counted as covered by the dialog, and then it has no caret.
  element.blur();
  element.focus({ preventScroll: true });
}
