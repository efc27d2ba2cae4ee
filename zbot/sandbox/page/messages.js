// Draws the messages of one channel and keeps them current in place: only the part of a message that changed is redrawn.

import { avatar, fill, h, icon } from "./dom.js";
import { componentElement, shownMedia } from "./components.js";
import { currentLocale, dayText, localised, t, timeText } from "./i18n.js";
import { inline, markdown, plainText, timeElement } from "./markdown.js";
import { embedElement, fileRow, isPicture, localAddress, pictureGrid } from "./media.js";

const LAYOUT_FLAG = 1 << 15;
const SUPPRESS_EMBEDS_FLAG = 1 << 2;
const GROUP_MS = 5 * 60 * 1000;
const AT_BOTTOM_PX = 60;

/** Make the message list. `actions`: press(message, custom_id, values), dismiss(message), open(pictures, index). */
export function createMessageList({ scroller, list, jump, state, actions }) {
  const rows = new Map();
  let stick = true;

  const people = {
    user: (id) => state.users.find((user) => user.id === id)?.display_name ?? (state.bot.id === id ? state.bot.name : "?"),
    channel: (id) => state.channels.find((channel) => channel.id === id)?.name ?? "?",
  };
  const text = (value) => markdown(value, people);

  function toBottom(smooth = false) {
    stick = true;
    jump.hidden = true;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    scroller.scrollTo({ top: scroller.scrollHeight, behavior: smooth && !calm ? "smooth" : "instant" });
  }

  let lastTop = 0;
  scroller.addEventListener("scroll", () => {
    // Only a person scrolls up; a message that grows under the end leaves the position where it was.
    if (scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < AT_BOTTOM_PX) stick = true;
    else if (scroller.scrollTop < lastTop - 1) stick = false;
    lastTop = scroller.scrollTop;
    if (stick) jump.hidden = true;
  }, { passive: true });
  // Pictures, opened lines and a smaller window change the height: whoever reads the end stays at the end.
  const observer = new ResizeObserver(() => stick && scroller.scrollTo({ top: scroller.scrollHeight, behavior: "instant" }));
  observer.observe(list);
  observer.observe(scroller);
  jump.addEventListener("click", () => toBottom(true));

  function authorName(message) {
    return message.author.bot && message.author.id === state.bot.id ? state.bot.name : people.user(message.author.id) !== "?" ? people.user(message.author.id) : message.author.global_name ?? message.author.username;
  }

  function commandName(name) {
    const [first, ...words] = name.split(" ");
    const command = state.commands.find((entry) => entry.name === first);
    return [command ? localised(first, command.name_localizations) : first, ...words].join(" ");
  }

  function asked(message) {
    const { interaction } = message;
    if (!interaction) return null;
    const name = h("strong", {}, interaction.user.display_name);
    // The sentence is cut at its names, so that both can be set apart whatever the order of a language is.
    const command = interaction.text?.startsWith("/") && interaction.name ? h("span", { class: "mention" }, `/${commandName(interaction.name)}`) : null;
    const parts = t(command ? "used" : "answered", { name: "\u0001", command: "\u0002" }).split(/([\u0001\u0002])/);
    return h("p", { class: "asked", title: interaction.text || null }, avatar(interaction.user.display_name, false), h("span", { class: "asked-text" }, parts.map((part) => (part === "\u0001" ? name : part === "\u0002" ? command : part))));
  }

  function pictures(message) {
    const elsewhere = shownMedia(message);
    return message.attachments.filter((attachment) => isPicture(attachment) && localAddress(attachment.url) !== null && !elsewhere.has(attachment.url));
  }

  function files(message) {
    if (message.flags & LAYOUT_FLAG) return [];
    return message.attachments.filter((attachment) => !isPicture(attachment));
  }

  // Each part of a message: what it depends on, and how it is drawn.
  const parts = {
    asked: { of: (m) => [m.interaction, m.grouped, state.commands.length], draw: asked },
    head: {
      of: (m) => [m.grouped, m.author, m.timestamp],
      draw: (m) => (m.grouped ? null : h("header", { class: "message-head" }, h("span", { class: "author" }, authorName(m)), m.author.bot ? h("span", { class: "badge" }, t("bot_badge")) : null,
        h("time", { class: "when", datetime: m.timestamp, title: timeText(Date.parse(m.timestamp) / 1000, "F") }, timeText(Date.parse(m.timestamp) / 1000, "t")))),
    },
    content: {
      of: (m) => [m.content, m.loading, m.edited_timestamp, m.failure, m.sending],
      draw(m) {
        if (m.failure) return h("p", { class: "failure", role: "alert" }, icon("alert"), m.failure);
        if (m.sending) return h("p", { class: "thinking" }, h("span", { class: "spinner", "aria-hidden": "true" }), t("sending"));
        if (m.loading && !m.content) return h("p", { class: "thinking" }, h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), t("thinking", { name: authorName(m) }));
        if (!m.content) return null;
        const body = h("div", { class: "md content" }, text(m.content));
        if (m.edited_timestamp && !m.loading) {
          const note = h("span", { class: "edited", title: t("edited_at", { time: timeText(Date.parse(m.edited_timestamp) / 1000, "F") }) }, ` ${t("edited")}`);
          (body.lastElementChild?.tagName === "P" ? body.lastElementChild : body).append(note);
        }
        return body;
      },
    },
    pictures: {
      of: (m) => pictures(m),
      draw(m, holder) {
        const found = pictures(m);
        return found.length ? pictureGrid(holder.firstElementChild, found, (index) => actions.open(pictures(rows.get(m.id)?.message ?? m), index)) : null;
      },
    },
    files: { of: (m) => files(m), draw: (m) => files(m).map(fileRow) },
    embeds: {
      of: (m) => [m.embeds, m.flags & SUPPRESS_EMBEDS_FLAG],
      draw: (m) => (m.flags & SUPPRESS_EMBEDS_FLAG ? null : m.embeds.map((embed) => embedElement(embed, { text, inlineText: (value) => inline(value, people), time: (unix_s) => timeElement(unix_s, "f"), open: actions.open }))),
    },
    components: {
      of: (m) => [m.components, [...(state.pending.get(m.id) ?? [])], currentLocale()],
      draw: (m) => m.components.map((component) => componentElement(component, {
        press: (custom_id, values) => actions.press(m, custom_id, values), isPending: (custom_id) => state.pending.get(m.id)?.has(custom_id) ?? false,
        open: actions.open, text, users: state.users, channels: state.channels,
      })),
    },
    problem: {
      of: (m) => state.problems.get(m.id) ?? null,
      draw: (m) => (state.problems.has(m.id) ? h("p", { class: "failure", role: "alert" }, icon("alert"), state.problems.get(m.id)) : null),
    },
    foot: {
      of: (m) => [m.ephemeral, m.failure],
      draw: (m) => (m.ephemeral ? h("p", { class: "only-you" }, icon("eye"), h("span", {}, t("only_you")), h("span", { "aria-hidden": "true" }, "·"), h("button", { class: "text-button", type: "button", on: { click: () => actions.dismiss(m) } }, t("dismiss"))) : null),
    },
  };

  function makeRow(message) {
    const holders = Object.fromEntries(Object.keys(parts).map((name) => [name, h("div", { class: `part part-${name}` })]));
    const face = h("div", { class: "message-face" }, avatar(authorName(message), message.author.bot));
    const { asked: first, ...rest } = holders;
    const element = h("li", { class: "message", data: { messageId: message.id } }, first, face, h("div", { class: "message-body" }, Object.values(rest)));
    return { element, holders, seen: {}, message };
  }

  function update(row, message) {
    row.message = message;
    const focused = row.element.contains(document.activeElement) ? document.activeElement.dataset.customId : undefined;
    for (const [name, part] of Object.entries(parts)) {
      const seen = JSON.stringify([part.of(message), currentLocale()]);
      if (row.seen[name] === seen) continue;
      row.seen[name] = seen;
      const made = part.draw(message, row.holders[name]);
      if (made === null || made !== row.holders[name].firstElementChild) fill(row.holders[name], made);
    }
    if (focused && !row.element.contains(document.activeElement)) row.element.querySelector(`[data-custom-id="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    row.element.classList.toggle("is-ephemeral", Boolean(message.ephemeral));
    row.element.classList.toggle("is-grouped", Boolean(message.grouped));
    row.element.classList.toggle("is-loading", Boolean(message.loading || message.sending));
    row.element.toggleAttribute("data-failed", Boolean(message.failure));
    row.element.toggleAttribute("data-loading", Boolean(message.loading || message.sending));
    row.element.toggleAttribute("data-ephemeral", Boolean(message.ephemeral));
  }

  /** Bring the list to these messages, oldest first. `fresh` says that another channel or person is shown now. */
  function render(messages, { fresh = false } = {}) {
    if (fresh) {
      rows.clear();
      list.replaceChildren();
    }
    const wanted = [];
    let before = null;
    for (const message of messages) {
      const moment = Date.parse(message.timestamp);
      const newDay = !before || new Date(before.timestamp).toDateString() !== new Date(moment).toDateString();
      if (newDay) wanted.push({ day: dayText(moment), key: `day-${new Date(moment).toDateString()}` });
      const grouped = !newDay && before.author.id === message.author.id && !message.interaction && !message.ephemeral && !before.ephemeral && !before.failure && moment - Date.parse(before.timestamp) < GROUP_MS;
      wanted.push({ message: { ...message, grouped }, key: message.id });
      before = message;
    }
    const keys = new Set(wanted.map((item) => item.key));
    for (const [key, row] of rows) {
      if (keys.has(key)) continue;
      row.element.remove();
      rows.delete(key);
    }
    let place = list.firstElementChild;
    let added = false;
    for (const item of wanted) {
      let row = rows.get(item.key);
      if (!row) {
        row = item.message ? makeRow(item.message) : { element: h("li", { class: "day" }, h("span", {})) };
        rows.set(item.key, row);
        if (!fresh && item.message) row.element.classList.add("is-new");
        added = true;
      }
      if (item.message) update(row, item.message);
      else row.element.firstElementChild.textContent = item.day;
      if (row.element === place) place = place.nextElementSibling;
      else list.insertBefore(row.element, place);
    }
    if (fresh || (added && stick)) toBottom();
    else if (added) jump.hidden = false;
  }

  /** Say a message in one line, for announcements. */
  function summary(message) {
    const count = pictures(message).length + message.embeds.filter((embed) => embed.image).length;
    const words = message.content || message.embeds[0]?.description || message.embeds[0]?.title || "";
    const said = [count ? t("pictures", { count }) : "", plainText(words, people).slice(0, 160)].filter(Boolean).join(", ");
    return said ? t("new_message", { name: authorName(message), text: said }) : "";
  }

  return { render, toBottom, summary, people };
}
