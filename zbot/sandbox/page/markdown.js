// Turns the small part of Discord's markdown that bots use into elements; text stays text.

import { h } from "./dom.js";
import { t, timeText } from "./i18n.js";

const INLINE = new RegExp(
  [
    "\\\\(?<escaped>[^\\w\\s])",
    "(?<fence>`+)(?<code>[^`]|[^`][\\s\\S]*?[^`])\\k<fence>(?!`)",
    "<t:(?<unix>-?\\d{1,13})(?::(?<style>[tTdDfFR]))?>",
    "<@!?(?<user>\\d+)>",
    "<#(?<channel>\\d+)>",
    "</(?<command>[^:>\\n]+):\\d+>",
    "<a?:(?<emoji>\\w+):\\d+>",
    "\\[(?<label>[^\\]\\n]+)\\]\\(<?(?<target>https?://[^\\s)>]+)>?\\)",
    "<?(?<url>https?://[^\\s<>]+[^\\s<>.,:;!?\"')\\]])>?",
    "\\|\\|(?<spoiler>[\\s\\S]+?)\\|\\|",
    "\\*\\*(?<bold>(?:\\\\.|[^\\\\])+?)\\*\\*(?!\\*)",
    "__(?<underline>(?:\\\\.|[^\\\\])+?)__(?!_)",
    "~~(?<strike>(?:\\\\.|[^\\\\])+?)~~",
    "\\*(?<star>(?![\\s*])(?:\\\\.|[^\\\\*]|\\*\\*[^*]+\\*\\*)+?(?<!\\s))\\*(?!\\*)",
    "(?<!\\w)_(?<dash>(?:\\\\.|[^\\\\_]|__[^_]+__)+?)_(?!\\w)",
  ].join("|"),
  "gu",
);
// Nested marks beyond this are shown as written: nobody means them, and a hostile text must not exhaust the stack.
const MAX_DEPTH = 8;

/** Make a time element; `tick` keeps the relative ones current. */
export function timeElement(unix_s, style) {
  const moment = new Date(unix_s * 1000);
  const valid = !Number.isNaN(moment.getTime());
  return h("time", {
    class: "stamp", datetime: valid ? moment.toISOString() : null, title: timeText(unix_s, "F"),
    data: style === "R" ? { relative: String(unix_s) } : {},
  }, timeText(unix_s, style));
}

/** Rewrite every relative time that is on the page. */
export function tick() {
  for (const element of document.querySelectorAll("time[data-relative]")) {
    const text = timeText(Number(element.dataset.relative), "R");
    if (element.textContent !== text) element.textContent = text;
  }
}

function link(url, label) {
  let target = null;
  try {
    target = new URL(url);
  } catch {
    return label ?? url;
  }
  if (target.origin === location.origin) return h("a", { href: url, target: "_blank", rel: "noopener" }, label ?? url);
  // A foreign address is shown, never followed: nothing on this page leads out of the computer.
  return h("span", { class: "outside", title: t("opens_outside") }, label && label !== url ? [label, " (", url, ")"] : url);
}

function spoiler(children) {
  const button = h("button", { class: "spoiler", type: "button", "aria-label": t("spoiler"), "aria-expanded": "false" }, h("span", { "aria-hidden": "true" }, children));
  button.addEventListener("click", () => button.replaceWith(h("span", { class: "spoiler-open" }, children)), { once: true });
  return button;
}

/** Keep the two hyphens of a flag and its first letter in one line, where a browser would part them. */
function unbroken(text) {
  return text.split(/(--[\p{L}\p{N}])/u).map((part, index) => (index % 2 ? h("span", { class: "unbroken" }, part) : part));
}

/** Render one run of text: an array of strings and elements. `people` names users and channels by id. */
export function inline(text, people, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const parts = [];
  let end = 0;
  const deeper = (inner) => inline(inner, people, depth + 1);
  // No line begins with the dot that ends the fact before it.
  const plain = (run) => unbroken(run.replaceAll(" · ", "\u00a0· "));
  for (const match of text.matchAll(INLINE)) {
    const found = match.groups;
    parts.push(plain(text.slice(end, match.index)));
    end = match.index + match[0].length;
    if (found.escaped) parts.push(found.escaped);
    else if (found.code) parts.push(h("code", {}, unbroken(found.code.trim() || found.code)));
    else if (found.unix) parts.push(timeElement(Number(found.unix), found.style));
    else if (found.user) parts.push(h("span", { class: "mention" }, `@${people.user(found.user)}`));
    else if (found.channel) parts.push(h("span", { class: "mention" }, `#${people.channel(found.channel)}`));
    else if (found.command) parts.push(h("span", { class: "mention" }, `/${found.command}`));
    else if (found.emoji) parts.push(`:${found.emoji}:`);
    else if (found.target) parts.push(link(found.target, found.label));
    else if (found.url) parts.push(link(found.url));
    else if (found.spoiler) parts.push(spoiler(deeper(found.spoiler)));
    else if (found.bold) parts.push(h("strong", {}, deeper(found.bold)));
    else if (found.underline) parts.push(h("u", {}, deeper(found.underline)));
    else if (found.strike) parts.push(h("s", {}, deeper(found.strike)));
    else parts.push(h("em", {}, deeper(found.star ?? found.dash)));
  }
  parts.push(plain(text.slice(end)));
  return parts.flat();
}

function block(text, people, depth) {
  const out = [];
  const rows = text.split("\n");
  let plain = [];
  const flush = () => {
    // Blank lines part paragraphs; single line breaks stay in the text and CSS keeps them.
    const paragraphs = plain.join("\n").split(/\n(?:[ \t]*\n)+/).map((text) => text.replace(/^\s*\n|\s+$/g, ""));
    for (const text of paragraphs) if (text.trim()) out.push(h("p", {}, inline(text, people)));
    plain = [];
  };
  for (let index = 0; index < rows.length; index++) {
    const row = rows[index];
    const heading = /^(#{1,3}) +(.+)$/.exec(row);
    const small = /^-# +(.+)$/.exec(row);
    if (row.startsWith(">>> ") && depth < 2) {
      flush();
      out.push(h("blockquote", {}, block([row.slice(4), ...rows.slice(index + 1)].join("\n"), people, depth + 1)));
      break;
    }
    if (/^> ?/.test(row) && row !== ">" && depth < 2) {
      flush();
      const quoted = [];
      for (; index < rows.length && rows[index].startsWith(">"); index++) quoted.push(rows[index].replace(/^> ?/, ""));
      index -= 1;
      out.push(h("blockquote", {}, block(quoted.join("\n"), people, depth + 1)));
    } else if (heading) {
      flush();
      // The page's own headings are levels 1 and 2; those of a message come below them.
      out.push(h(`h${heading[1].length + 2}`, {}, inline(heading[2], people)));
    } else if (small) {
      flush();
      out.push(h("p", { class: "subtext" }, inline(small[1], people)));
    } else if (/^ {0,3}([-*]|\d+\.) +\S/.test(row)) {
      flush();
      const ordered = /^ *\d/.test(row);
      const start = ordered ? /\d+/.exec(row)[0] : null;
      const items = [];
      for (; index < rows.length && (ordered ? /^ {0,3}\d+\. +\S/ : /^ {0,3}[-*] +\S/).test(rows[index]); index++) {
        items.push(h("li", {}, inline(rows[index].replace(/^ *([-*]|\d+\.) +/, ""), people)));
      }
      index -= 1;
      out.push(h(ordered ? "ol" : "ul", ordered ? { start } : {}, items));
    } else plain.push(row);
  }
  flush();
  return out;
}

/** Render a message's text: paragraphs, quotes, lists, headings, code blocks. */
export function markdown(text, people) {
  const out = [];
  text.split(/```(?:([\w+#-]*)\n)?([\s\S]*?)```/g).forEach((part, index, parts) => {
    if (index % 3 === 0 && part) out.push(...block(part, people, 0));
    if (index % 3 === 2) out.push(h("pre", { tabindex: "0" }, h("code", { data: parts[index - 1] ? { language: parts[index - 1] } : {} }, unbroken(part.replace(/\n$/, "")))));
  });
  return out;
}

/** Give the words of a message without its marks, for titles and for announcements. */
export function plainText(text, people) {
  return markdown(text, people).map((part) => part.textContent.trim()).join(" ");
}
