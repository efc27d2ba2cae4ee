// Holds what the page knows, listens to the sandbox, and has the rooms draw it.

import { createAnswers } from "./answers.js";
import { Refused, fetchState, listen } from "./api.js";
import { createComposer } from "./composer.js";
import { setLocale, t } from "./i18n.js";
import { createLightbox } from "./lightbox.js";
import { tick } from "./markdown.js";
import { createMessageList } from "./messages.js";
import { createModal } from "./modal.js";
import { createSide, drawHead, drawWelcome } from "./side.js";

const ANNOUNCE_AFTER_MS = 700;
const REMEMBER = "zbot-sandbox";

const $ = (id) => document.getElementById(id);

const state = {
  me: null, users: [], bot: { id: "", name: "zbot", online: false }, channels: [], commands: [],
  messages: new Map(), local: new Map(), channel_id: null, connected: false, loaded: false,
  unread: new Set(), unseen: new Set(), dismissed: new Set(), pending: new Map(), problems: new Map(),
};
let stopListening = () => {};
let loading = 0;
let everConnected = false;

const answers = createAnswers({ state, draw: drawSoon, announce });
const open = createLightbox($("lightbox"));
const messages = createMessageList({ scroller: $("log"), list: $("messages"), jump: $("jump"), state, actions: { press: answers.press, dismiss, open } });
const side = createSide({ side: $("side"), scrim: $("scrim"), main: $("main"), state, actions: { choose, become } });
const composer = createComposer({ root: $("composer"), state, onSent(sent) { answers.commandSent(sent); drawMessages(); messages.toBottom(); } });
const openModal = createModal($("modal"), { state, people: messages.people, answered: answers.modalSent });

// Where one is and who one is stand in the address and are remembered for the next visit.

function readPlace() {
  const place = new URLSearchParams(location.hash.slice(1));
  let remembered = {};
  try {
    remembered = JSON.parse(localStorage.getItem(REMEMBER) ?? "{}");
  } catch {
    // A private window without storage, or something else's value: the first person is as good.
  }
  return { user: place.get("user") ?? remembered.user, channel: place.get("channel") ?? remembered.channel };
}

function writePlace() {
  const place = { user: state.me.id, channel: state.channel_id };
  const name = (entry, all) => (entry && all.filter((other) => other.name === entry.name).length === 1 ? entry.name : entry?.id);
  const channel = state.channels.find((entry) => entry.id === state.channel_id);
  const hash = new URLSearchParams({ user: name(state.me, state.users), channel: name(channel, state.channels) ?? "" });
  history.replaceState(null, "", `#${hash}`);
  try {
    localStorage.setItem(REMEMBER, JSON.stringify(place));
  } catch {
    // Remembering is a convenience.
  }
}

const find = (list, wanted) => list.find((entry) => entry.id === wanted) ?? list.find((entry) => entry.name === wanted);

// Loading.

async function fetchFor(wanted) {
  try {
    if (/^\d+$/.test(wanted ?? "")) return await fetchState(wanted);
  } catch (error) {
    // Someone of an earlier sandbox: begin with the first person.
    if (!(error instanceof Refused) || error.status === 0 || error.status >= 500) throw error;
  }
  const first = await fetchState();
  const named = find(first.users, wanted);
  return named && named.id !== first.me.id ? fetchState(named.id) : first;
}

async function load(wanted) {
  const own = ++loading;
  const fresh = await fetchFor(wanted);
  if (own !== loading) return;
  const before = state.me?.id;
  Object.assign(state, { me: fresh.me, users: fresh.users, bot: fresh.bot, channels: fresh.channels, commands: fresh.commands, loaded: true });
  state.messages = new Map(Object.entries(fresh.messages).map(([id, list]) => [id, new Map(list.map((message) => [message.id, message]))]));
  if (before !== state.me.id) {
    state.unread.clear();
    answers.forget();
  } else answers.settleAnswered();
  for (const id of [...state.unread]) if (!state.messages.get(id)?.size) state.unread.delete(id);
  if (!state.channels.some((channel) => channel.id === state.channel_id)) state.channel_id = (find(state.channels, readPlace().channel) ?? state.channels[0])?.id ?? null;
  setLocale(state.me.locale);
  writePlace();
  if (before !== state.me.id) composer.reset();
  composer.relabel();
  draw({ fresh: before !== state.me.id });
  if (before !== state.me.id) follow();
}

function follow() {
  stopListening();
  stopListening = listen(state.me.id, {
    onEvent: take,
    onOpen() {
      state.connected = everConnected = true;
      drawAround();
      // What happened between the answer of /state and now, or while the line was down, is made good by loading again.
      reload();
    },
    onLost() {
      state.connected = false;
      drawAround();
    },
  });
}

function reload() {
  load(state.me.id).catch(() => {
    state.connected = false;
    drawAround();
  });
}

async function start() {
  setLocale(navigator.language);
  $("skip").textContent = t("skip");
  for (let wait_ms = 500; ; wait_ms = Math.min(wait_ms * 2, 8000)) {
    try {
      await load(readPlace().user);
      // On a touch screen the focus would open the keyboard over half the page.
      if (matchMedia("(hover: hover)").matches) composer.focus();
      return;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      showBanner(t("unreachable"));
      await new Promise((resolve) => setTimeout(resolve, wait_ms));
    }
  }
}

// Drawing.

function shown() {
  const channel = state.channel_id;
  const told = [...(state.messages.get(channel)?.values() ?? []), ...[...state.local.values()].filter((message) => message.channel_id === channel)];
  return told.filter((message) => !state.dismissed.has(message.id)).sort((a, b) => Date.parse(a.timestamp) - Date.parse(b.timestamp) || (a.id.length - b.id.length) || (a.id < b.id ? -1 : 1));
}

function drawMessages(options) {
  const list = shown();
  const empty = list.length === 0 && state.loaded;
  const channel = state.channels.find((entry) => entry.id === state.channel_id);
  $("messages").setAttribute("aria-label", t("messages_in", { channel: channel?.name ?? "" }));
  if (empty && ($("welcome").hidden || options?.fresh)) drawWelcome($("welcome"), (line) => composer.fill(line));
  $("welcome").hidden = !empty;
  messages.render(list, options);
}

let drawing = false;
// Many events in one frame are one drawing, and a hidden page draws when it is looked at again.
function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawMessages();
  });
}

function showBanner(text) {
  $("banner").hidden = !text;
  if ($("banner").textContent !== text) $("banner").textContent = text ?? "";
}

function drawAround() {
  side.draw();
  drawHead($("head"), state, side.open);
  $("skip").textContent = t("skip");
  $("jump").textContent = t("jump");
  const lost = everConnected && !state.connected;
  showBanner(lost ? t("reconnecting") : state.bot.online ? "" : t("bot_offline", { name: state.bot.name }));
  composer.refresh();
  drawTitle();
}

function draw(options) {
  drawAround();
  drawMessages(options);
}

function drawTitle() {
  const channel = state.channels.find((entry) => entry.id === state.channel_id);
  const where = channel ? `${channel.kind === "dm" ? "" : "#"}${channel.name} · zbot` : "zbot";
  document.title = state.unseen.size ? `(${state.unseen.size}) ${where}` : where;
}

function choose(channel_id) {
  state.channel_id = channel_id;
  state.unread.delete(channel_id);
  writePlace();
  composer.relabel();
  draw({ fresh: true });
  composer.focus();
}

function become(user_id) {
  load(user_id).catch(() => showBanner(t("unreachable")));
}

// Saying new things to those who do not see the list.

let announcement = 0;
function announce(text) {
  if (!text) return;
  clearTimeout(announcement);
  // Progress edits come quickly one after the other; only what stands for a moment is said.
  announcement = setTimeout(() => ($("announcer").textContent = text), ANNOUNCE_AFTER_MS);
}

function noticed(message, before) {
  const result = (entry) => entry.attachments.length + entry.embeds.filter((embed) => embed.image).length;
  const finished = before && before.loading !== message.loading || (before && result(message) > result(before));
  if (before && !finished) return;
  announce(messages.summary(message));
  if (message.loading) return;
  if (document.hidden) state.unseen.add(message.id);
  if (message.channel_id !== state.channel_id) state.unread.add(message.channel_id);
  drawAround();
}

function dismiss(message) {
  state.dismissed.add(message.id);
  state.local.delete(message.id);
  drawMessages();
  composer.focus();
}

// Events.

function take(event) {
  if (event.type === "message") {
    const { message } = event.message ? event : { message: event };
    const list = state.messages.get(message.channel_id) ?? new Map();
    state.messages.set(message.channel_id, list);
    const before = list.get(message.id);
    list.set(message.id, message);
    answers.messageChanged(message.id, message.interaction?.id);
    if (message.channel_id === state.channel_id) drawSoon();
    noticed(message, before);
  } else if (event.type === "message_delete") {
    const focused = document.activeElement?.closest?.("[data-message-id]")?.dataset.messageId === event.id;
    state.messages.get(event.channel_id)?.delete(event.id);
    answers.messageChanged(event.id);
    if (event.channel_id === state.channel_id) drawMessages();
    if (focused) composer.focus();
  } else if (event.type === "commands") {
    state.commands = event.commands;
    composer.relabel();
    drawMessages();
  } else if (event.type === "bot") {
    state.bot = { ...state.bot, online: event.online };
    drawAround();
  } else if (event.type === "modal") {
    answers.opened(event.interaction_id);
    openModal(event);
  } else if (event.type === "failed") answers.failed(event.interaction_id);
  else if (event.type === "acknowledged") answers.acknowledged(event.interaction_id);
  else if (event.type === "state") reload();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  state.unseen.clear();
  drawTitle();
});
window.addEventListener("hashchange", () => {
  const place = readPlace();
  const user = find(state.users, place.user);
  const channel = find(state.channels, place.channel);
  if (channel && channel.id !== state.channel_id) choose(channel.id);
  if (user && user.id !== state.me.id) become(user.id);
});
$("skip").addEventListener("click", () => composer.focus());
// A letter typed anywhere begins a command, as one expects of a chat.
document.addEventListener("keydown", (event) => {
  const busy = event.target.closest("input, textarea, dialog, [role=listbox], [role=combobox]") || event.ctrlKey || event.metaKey || event.altKey;
  if (busy || event.key !== "/" || document.querySelector("dialog[open]")) return;
  composer.focus();
});
setInterval(tick, 1000);
start();
