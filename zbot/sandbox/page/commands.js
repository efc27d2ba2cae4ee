// Knows the commands that the bot synced: their names in this person's language, what a value may be, a typed line's meaning.

import { localised, t } from "./i18n.js";

export const STRING = 3, INTEGER = 4, BOOLEAN = 5, USER = 6, CHANNEL = 7, NUMBER = 10, ATTACHMENT = 11;
const CHAT_INPUT = 1, SUBCOMMAND = 1, GROUP = 2;

/** Flatten the commands usable in a channel, in the bot's own order, into entries `{command, path, options, name, label, description}`. */
export function entriesOf(commands, channel_id) {
  const entries = [];
  const visit = (command, node, path, labels) => {
    const children = (node.options ?? []).filter((option) => option.type === SUBCOMMAND || option.type === GROUP);
    if (children.length) {
      for (const child of children) visit(command, child, [...path, child.name], [...labels, localised(child.name, child.name_localizations)]);
      return;
    }
    const required = (option) => (option.required ? 0 : 1);
    entries.push({
      command, path, name: [command.name, ...path].join(" "), label: labels.join(" "),
      description: localised(node.description ?? "", node.description_localizations),
      options: (node.options ?? []).slice().sort((a, b) => required(a) - required(b)),
    });
  };
  const usable = commands.filter((command) => (command.type ?? CHAT_INPUT) === CHAT_INPUT && (command.channel_ids?.includes(channel_id) ?? true));
  for (const command of usable) {
    // Where a guild has its own command of the same name, that one is meant.
    const hidden = !command.guild_id && usable.some((other) => other.guild_id && other.name === command.name);
    if (!hidden) visit(command, command, [], [localised(command.name, command.name_localizations)]);
  }
  return entries;
}

/** Find the entries that a half-typed name may mean: those that begin with it first. */
export function matching(entries, typed) {
  const wanted = typed.toLowerCase();
  const rank = (entry) => {
    const names = [entry.name.toLowerCase(), entry.label.toLowerCase()];
    if (names.some((name) => name.startsWith(wanted))) return 0;
    return names.some((name) => name.includes(wanted)) ? 1 : 2;
  };
  return entries.filter((entry) => rank(entry) < 2).sort((a, b) => rank(a) - rank(b));
}

export function optionLabel(option) {
  return localised(option.name, option.name_localizations);
}

export function choiceLabel(choice) {
  return localised(choice.name, choice.name_localizations);
}

/** The option that plain words after a command's name are for: its first string, the required one before others. */
export function mainOption(entry) {
  return entry.options.find((option) => option.type === STRING && !option.choices);
}

/** Read one value as a person writes it: `{value}` or `{error}`. Pure but for the language of its sentences. */
export function coerce(option, text, people) {
  const name = optionLabel(option);
  const words = text.trim();
  if (option.choices?.length) {
    const same = (candidate) => String(candidate).toLowerCase() === words.toLowerCase();
    const found = option.choices.find((choice) => same(choice.name) || same(choice.value) || same(choiceLabel(choice)));
    return found ? { value: found.value } : { error: t("pick_one", { name }) };
  }
  switch (option.type) {
    case INTEGER: case NUMBER: {
      const whole = option.type === INTEGER;
      if (!(whole ? /^[+-]?\d{1,16}$/ : /^[+-]?(\d+([.,]\d*)?|[.,]\d+)$/).test(words)) return { error: t(whole ? "whole_number" : "a_number", { name }) };
      const value = Number(words.replace(",", "."));
      if (option.min_value !== undefined && value < option.min_value) return { error: t("at_least", { name, min: option.min_value }) };
      if (option.max_value !== undefined && value > option.max_value) return { error: t("at_most", { name, max: option.max_value }) };
      return { value };
    }
    case BOOLEAN: {
      if (["true", "yes", "on", "1", "是", t("yes").toLowerCase()].includes(words.toLowerCase())) return { value: true };
      if (["false", "no", "off", "0", "否", t("no").toLowerCase()].includes(words.toLowerCase())) return { value: false };
      return { error: t("pick_one", { name }) };
    }
    case USER: {
      const wanted = words.replace(/^<@!?(\d+)>$/, "$1").replace(/^@/, "").toLowerCase();
      const found = people.users.find((user) => [user.id, user.name, user.display_name].some((known) => known.toLowerCase() === wanted));
      return found ? { value: found.id } : { error: t("no_member", { text: words }) };
    }
    case CHANNEL: {
      const wanted = words.replace(/^<#(\d+)>$/, "$1").replace(/^#/, "").toLowerCase();
      const found = people.channels.find((channel) => channel.id === wanted || channel.name.toLowerCase() === wanted);
      return found ? { value: found.id } : { error: t("pick_one", { name }) };
    }
    case ATTACHMENT: return { error: t("fill_in", { name }) };
    default: {
      if (option.type === STRING && option.min_length && [...text].length < option.min_length) return { error: t("too_short", { name, min: option.min_length }) };
      if (option.type === STRING && option.max_length && [...text].length > option.max_length) return { error: t("too_long", { name, max: option.max_length }) };
      return { value: words };
    }
  }
}

/** Find the entry that a typed line begins with and what follows it, or null. */
export function lineEntry(line, entries) {
  if (!line.startsWith("/")) return null;
  const typed = line.slice(1);
  const fits = (name) => typed.toLowerCase().startsWith(name.toLowerCase()) && /^(\s|$)/.test(typed.slice(name.length));
  let best = null;
  for (const entry of entries) {
    for (const name of [entry.name, entry.label]) if (fits(name) && (!best || name.length > best.length)) best = { entry, length: name.length };
  }
  return best && { entry: best.entry, rest: typed.slice(best.length) };
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/**
 * Read what follows a command's name: `/imagine a fox --ar 16:9`, `/imagine prompt: a fox seed: 7`, `/imagine a fox seed: 7`.
 * Returns `{texts: {option: text}}`. In a line that begins with plain words, "name:" counts only where its value can be
 * one, because a prompt may contain such words itself.
 */
export function readOptions(entry, rest, people) {
  const words = rest.trim();
  const texts = {};
  if (!words) return { texts };
  const names = new Map();
  for (const option of entry.options) for (const name of [option.name, optionLabel(option)]) names.set(name.toLowerCase(), option);
  const main = mainOption(entry) ?? entry.options[0];
  const pattern = new RegExp(`(?:^|\\s)(${[...names.keys()].map(escaped).join("|") || "(?!)"})[:\uff1a]`, "giu");
  const marks = [...words.matchAll(pattern)];
  const strict = marks[0]?.index === 0;
  const segments = [{ option: main, text: marks.length ? words.slice(0, marks[0].index) : words }];
  marks.forEach((mark, index) => {
    const option = names.get(mark[1].toLowerCase());
    const text = words.slice(mark.index + mark[0].length, marks[index + 1]?.index);
    const believable = !("error" in coerce(option, text, people)) && option.type !== STRING || option.choices?.length > 0 && !("error" in coerce(option, text, people));
    if (strict || believable) segments.push({ option, text });
    else segments.at(-1).text += mark[0] + text;
  });
  for (const { option, text } of segments) if (option && text.trim()) texts[option.name] = text.trim();
  return { texts };
}

/** Write a command and its values as one line, as a person could have typed it. */
export function lineOf(entry, shown) {
  return [`/${entry.label}`, ...shown.map(({ option, text }) => `${optionLabel(option)}: ${text}`)].join(" ");
}

/** Nest the values of a subcommand as Discord's clients send them. */
export function sentOptions(entry, values) {
  return entry.path.reduceRight((inner, name, depth) => [{ name, type: depth === entry.path.length - 1 ? SUBCOMMAND : GROUP, options: inner }], values);
}
