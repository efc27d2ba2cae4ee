// Knows what this person has sent and what has become of it: waiting, acknowledged, answered, failed.

import { Refused, interact } from "./api.js";
import { t } from "./i18n.js";

// Longer than the 3 seconds in which the bot has to acknowledge: a button never turns for ever.
const GIVE_UP_MS = 4000;
const EARLY_KEPT = 50;

const localId = (id) => `local-${id}`;

/** Keep `state.local` (own lines), `state.pending` (pressed buttons) and `state.problems` current; `draw` shows them. */
export function createAnswers({ state, draw, announce }) {
  // What was sent and not yet answered, by interaction id; and presses, which may be answered before their id is known.
  const waiting = new Map();
  const presses = new Set();
  // Ends of interactions whose id is not known here yet; those of the same person's other windows are forgotten again.
  const early = new Map();

  function later(id, end) {
    early.set(id, end);
    if (early.size > EARLY_KEPT) early.delete(early.keys().next().value);
  }

  function expect(id, about) {
    about.timer = setTimeout(() => settle(id), GIVE_UP_MS);
    waiting.set(id, about);
    // The answer may have come over the socket before the id came over HTTP.
    const known = early.get(id);
    early.delete(id);
    known?.();
    if ([...(state.messages.get(about.channel_id)?.values() ?? [])].some((message) => message.interaction?.id === id)) settle(id);
  }

  function settle(id, failure = null) {
    const about = waiting.get(id);
    if (!about) return;
    clearTimeout(about.timer);
    waiting.delete(id);
    if (about.kind === "command") state.local.delete(localId(id));
    if (about.kind === "component") unpress(about);
    about.tell?.(failure);
    draw();
  }

  /** A message appeared or changed or went: it answers the interaction it belongs to, and presses on it. */
  function messageChanged(message_id, interaction_id) {
    if (interaction_id) settle(interaction_id);
    for (const [id, about] of [...waiting]) if (about.message_id === message_id) settle(id);
    for (const pressed of [...presses]) if (pressed.message_id === message_id) unpress(pressed);
    state.problems.delete(message_id);
  }

  /** After everything was loaded anew: what has its message by now waits no longer. */
  function settleAnswered() {
    for (const list of state.messages.values()) for (const message of list.values()) if (message.interaction) settle(message.interaction.id);
  }

  function localMessage(id, channel_id, interaction, more) {
    return {
      id: localId(id), channel_id, author: { id: state.bot.id, username: state.bot.name, bot: true }, content: "", embeds: [], attachments: [], components: [], flags: 0,
      timestamp: new Date().toISOString(), edited_timestamp: null, mentions: [], ephemeral: false, loading: false, interaction, ...more,
    };
  }

  /** Show a command that the sandbox has taken until its answer comes. */
  function commandSent({ id, entry, text, channel_id }) {
    const interaction = { id, user: state.me, name: entry.command.name, text };
    state.local.set(localId(id), localMessage(id, channel_id, interaction, { sending: true }));
    expect(id, { kind: "command", channel_id, interaction });
    draw();
  }

  /** Wait for a submitted modal; resolves to why it failed, or to null. */
  function modalSent(id, channel_id) {
    return new Promise((tell) => expect(id, { kind: "modal", channel_id, tell }));
  }

  function unpress(pressed) {
    pressed.answered = true;
    presses.delete(pressed);
    state.pending.get(pressed.message_id)?.delete(pressed.custom_id);
  }

  /** Press a button or choose from a select of a message. */
  async function press(message, custom_id, values) {
    const { id: message_id, channel_id } = message;
    const pressed = { kind: "component", channel_id, message_id, custom_id, answered: false };
    presses.add(pressed);
    if (!state.pending.has(message_id)) state.pending.set(message_id, new Set());
    state.pending.get(message_id).add(custom_id);
    state.problems.delete(message_id);
    draw();
    try {
      const answer = await interact({ user: state.me.id, channel: channel_id, kind: "component", message_id, custom_id, ...(values ? { values } : {}) });
      if (!pressed.answered) expect(answer.id, pressed);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      unpress(pressed);
      state.problems.set(message_id, error.status === 0 ? t("unreachable") : error.status === 409 ? t("bot_offline", { name: state.bot.name }) : error.message);
      draw();
    }
  }

  function failed(interaction_id) {
    const about = waiting.get(interaction_id);
    if (!about) return later(interaction_id, () => failed(interaction_id));
    const failure = t(about.kind === "command" ? "no_response" : "interaction_failed");
    settle(interaction_id, failure);
    if (about.kind === "component") state.problems.set(about.message_id, failure);
    if (about.kind === "command") {
      state.local.set(localId(interaction_id), localMessage(interaction_id, about.channel_id, about.interaction, { failure, ephemeral: true }));
      announce(t("command_failed", { text: failure }));
    }
    draw();
  }

  function acknowledged(id) {
    const about = waiting.get(id);
    // A command's own line goes when its message comes, which is the next event.
    if (!about) later(id, () => acknowledged(id));
    else if (about.kind !== "command") settle(id);
  }

  /** The bot answered with a modal. */
  function opened(id) {
    if (waiting.has(id)) settle(id);
    else later(id, () => settle(id));
  }

  /** Forget everything: another person sits here now. */
  function forget() {
    for (const about of waiting.values()) clearTimeout(about.timer);
    for (const known of [waiting, presses, early, state.local, state.pending, state.problems]) known.clear();
  }

  return { commandSent, modalSent, press, failed, acknowledged, opened, messageChanged, settleAnswered, forget };
}
