// The place where one types: a line with the list of commands above it, or the form of the chosen command.

import { Refused, interact } from "./api.js";
import { ATTACHMENT, coerce, entriesOf, lineEntry, lineOf, mainOption, matching, optionLabel, readOptions, sentOptions } from "./commands.js";
import { fill, h, icon } from "./dom.js";
import { createField, grow } from "./fields.js";
import { t } from "./i18n.js";
import { createListbox } from "./listbox.js";

const REMEMBERED_LINES = 30;

/** Make the composer. `onSent({id, entry, text})` runs when the sandbox has taken a command. */
export function createComposer({ root, state, onSent }) {
  let form = null;
  let sending = false;
  let history = [];
  let recalled = -1;

  const input = h("textarea", { id: "composer-input", class: "line-input", rows: "1", autocomplete: "off", spellcheck: "false", role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-haspopup": "listbox", enterkeyhint: "send" });
  const send = h("button", { id: "send", class: "send", type: "submit" }, icon("send"));
  const line = h("form", { class: "line", novalidate: true }, input, send);
  const note = h("p", { class: "composer-note", id: "composer-note" });
  const problem = h("p", { class: "composer-error", id: "composer-error", role: "alert", hidden: true });
  const holder = h("div", { class: "composer-holder" });
  root.append(h("div", { class: "composer-inner" }, problem, holder, note));
  input.setAttribute("aria-describedby", "composer-note");

  const list = createListbox({ label: t("commands"), wide: true, onPick: (item) => choose(item.entry) });

  const entries = () => entriesOf(state.commands, state.channel_id);
  const people = () => ({ users: state.users, channels: state.channels.filter((channel) => channel.kind === "text") });

  function complain(message, ...more) {
    problem.hidden = !message;
    fill(problem, message ? icon("alert") : null, message, more);
  }

  function ready() {
    return state.bot.online && state.connected;
  }

  function refresh() {
    const locked = !ready() || sending;
    send.disabled = locked;
    send.classList.toggle("is-pending", sending);
    if (form) {
      form.submit.disabled = locked;
      form.submit.classList.toggle("is-pending", sending);
    }
  }

  function hint(text) {
    note.textContent = text;
  }

  function complete(entry) {
    return async (option, text, signal) => {
      const others = form.fields.filter((field) => field.option !== option).map((field) => [field.option, field.peek().value]).filter(([, value]) => value !== undefined);
      const options = [...others.map(([{ name }, value]) => ({ name, value })), { name: option.name, value: text, focused: true }];
      const answer = await interact({ user: state.me.id, channel: state.channel_id, kind: "autocomplete", command_id: entry.command.id, options: sentOptions(entry, options) }, signal);
      return answer.choices ?? [];
    };
  }

  async function submit(entry, given) {
    if (sending || !ready()) {
      if (!ready()) complain(state.connected ? t("bot_offline", { name: state.bot.name }) : t("reconnecting"));
      return false;
    }
    const text = lineOf(entry, given);
    sending = true;
    complain(null);
    refresh();
    try {
      const options = sentOptions(entry, given.map(({ option, value }) => ({ name: option.name, value })));
      const channel_id = state.channel_id;
      const answer = await interact({ user: state.me.id, channel: channel_id, kind: "command", command_id: entry.command.id, options });
      history = [text, ...history.filter((known) => known !== text)].slice(0, REMEMBERED_LINES);
      recalled = -1;
      onSent({ id: answer.id, entry, text, channel_id });
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      complain(error.status === 0 ? t("unreachable") : error.status === 409 ? t("bot_offline", { name: state.bot.name }) : error.message);
      return false;
    } finally {
      sending = false;
      refresh();
    }
  }

  // The line.

  function showLine(text = "", focus = true) {
    list.hide();
    form = null;
    input.value = text;
    fill(holder, line);
    hint("");
    refresh();
    if (focus) {
      input.focus();
      input.setSelectionRange(text.length, text.length);
    }
    grow(input);
  }

  function suggest() {
    const text = input.value;
    const typed = /^\/([^\n]*)$/.exec(text)?.[1];
    const known = lineEntry(text, entries());
    const open = typed !== undefined && !known?.rest && document.activeElement === input;
    hint(known?.rest ? `/${known.entry.label} · ${t("line_hint")}` : "");
    if (!open) return list.hide();
    const found = matching(entries(), typed.trimEnd());
    if (!found.length && typed.includes(" ")) return list.hide();
    list.show(input, found.map((entry) => ({
      value: entry.name, entry, label: `/${entry.label}`, detail: entry.description,
      hint: entry.options.filter((option) => option.required).map(optionLabel).join("  "), side: entry.label === entry.name ? null : entry.name,
    })), { message: t("no_command"), frame: line });
  }

  async function sendLine() {
    const text = input.value.trim();
    if (!text) return;
    list.hide();
    const known = lineEntry(text, entries());
    if (!known) {
      if (text.startsWith("/")) return complain(t("unknown_command", { name: text.slice(1).split(/\s/)[0] }));
      // Plain words are most likely a prompt: the first command with a required text takes them.
      const target = entries().find((entry) => entry.name === "imagine") ?? entries().find((entry) => mainOption(entry)?.required);
      const button = target && h("button", { class: "text-button", type: "button", on: { click: () => sendTexts(target, { [mainOption(target).name]: text }) } }, t("use_as_prompt", { command: `/${target.label}` }));
      return complain(t("only_commands"), " ", button);
    }
    return sendTexts(known.entry, readOptions(known.entry, known.rest, people()).texts);
  }

  async function sendTexts(entry, texts) {
    const given = [];
    let whole = true;
    for (const option of entry.options) {
      const text = texts[option.name];
      const read = text === undefined ? null : coerce(option, text, people());
      if (read && !("error" in read)) given.push({ option, value: read.value, text });
      else if (read || option.required) whole = false;
    }
    // A line that lacks something, or a bare name whose options one may want to see, opens the form with what there is.
    if (!whole || (Object.keys(texts).length === 0 && entry.options.length > 0)) return showForm(entry, texts, { check: !whole && Object.keys(texts).length > 0 });
    const before = input.value;
    if (await submit(entry, given)) showLine("", true);
    else if (!form) input.value = before;
  }

  function choose(entry) {
    complain(null);
    showForm(entry, {});
  }

  input.addEventListener("input", () => {
    complain(null);
    recalled = -1;
    grow(input);
    suggest();
  });
  input.addEventListener("focus", suggest);
  input.addEventListener("blur", () => setTimeout(() => document.activeElement !== input && list.hide()));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    // The whole name of a command without options needs no choice from the list: Enter sends it.
    const known = lineEntry(input.value, entries());
    const complete = event.key === "Enter" && known?.rest === "" && known.entry.options.length === 0;
    if (!complete && (event.key !== "Enter" || list.activeItem) && list.key(event)) return event.preventDefault();
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      sendLine();
    } else if (event.key === "Tab" && !event.shiftKey) {
      if (!known) return;
      event.preventDefault();
      showForm(known.entry, readOptions(known.entry, known.rest, people()).texts);
    } else if (event.key === "ArrowUp" && history.length && (!input.value || recalled >= 0)) {
      event.preventDefault();
      recalled = Math.min(recalled + 1, history.length - 1);
      input.value = history[recalled];
      grow(input);
    } else if (event.key === "ArrowDown" && recalled >= 0) {
      event.preventDefault();
      recalled -= 1;
      input.value = recalled < 0 ? "" : history[recalled];
      grow(input);
    } else if (event.key === "Escape") complain(null);
  });
  line.addEventListener("submit", (event) => {
    event.preventDefault();
    sendLine();
  });

  // The form.

  function showForm(entry, texts, { check = false } = {}) {
    list.hide();
    const fields = h("div", { class: "form-fields" });
    const chips = h("div", { class: "chips", role: "group", "aria-label": t("more_options") });
    const submitButton = h("button", { class: "send send-wide", type: "submit", id: "send-form" }, h("span", {}, t("send")), icon("send"));
    const element = h("form", { class: "command-form", novalidate: true, "aria-label": `/${entry.label}`, data: { command: entry.name } },
      h("header", { class: "form-head" }, h("span", { class: "form-command" }, `/${entry.label}`), h("span", { class: "form-about" }, entry.description),
        h("button", { class: "icon-button", type: "button", "aria-label": t("close_form"), title: t("close_form"), on: { click: leave } }, icon("close"))),
      fields, h("footer", { class: "form-foot" }, chips, submitButton));
    form = { entry, element, submit: submitButton, fields: [] };
    const own = form;

    function add(option, text) {
      const field = createField(option, text, {
        people: people(), complete: complete(entry), onSubmit: () => element.requestSubmit(),
        onRemove() {
          own.fields = own.fields.filter((other) => other !== field);
          field.element.remove();
          drawChips();
          chips.querySelector(`[data-option="${CSS.escape(option.name)}"]`)?.focus();
        },
      });
      own.fields.push(field);
      own.fields.sort((a, b) => entry.options.indexOf(a.option) - entry.options.indexOf(b.option));
      fields.insertBefore(field.element, own.fields[own.fields.indexOf(field) + 1]?.element ?? null);
      return field;
    }

    function drawChips() {
      const left = entry.options.filter((option) => !own.fields.some((field) => field.option === option));
      fill(chips, left.map((option) => h("button", {
        class: "chip", type: "button", "aria-label": t("add_option", { name: optionLabel(option) }), data: { option: option.name },
        on: {
          click() {
            const field = add(option);
            drawChips();
            field.focus();
          },
        },
      }, icon("plus"), optionLabel(option))));
    }

    for (const option of entry.options) if (option.required || texts[option.name] !== undefined) add(option, texts[option.name]);
    drawChips();

    function takeFile(file) {
      const existing = own.fields.find((field) => field.take);
      const option = entry.options.find((candidate) => candidate.type === ATTACHMENT);
      if (!existing && !option) return false;
      const field = existing ?? add(option);
      drawChips();
      field.take(file);
      return true;
    }

    element.addEventListener("submit", async (event) => {
      event.preventDefault();
      const read = own.fields.map((field) => ({ field, ...field.read() }));
      const wrong = read.find((entry) => entry.error);
      if (wrong) {
        wrong.field.focus();
        return;
      }
      const given = read.filter((one) => !one.empty).map(({ field, value, text }) => ({ option: field.option, value, text }));
      if (await submit(entry, given)) showLine();
    });
    element.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing) {
        event.preventDefault();
        leave();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element.requestSubmit();
      // Enter on a closed choice or a switch sends as everywhere else in the form.
      else if (event.key === "Enter" && event.target.matches("input[type=radio]")) {
        event.preventDefault();
        element.requestSubmit();
      }
    });
    element.addEventListener("input", () => complain(null));
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]);
    });
    element.addEventListener("paste", (event) => {
      const file = event.clipboardData?.files[0];
      if (file && takeFile(file)) event.preventDefault();
    });

    fill(holder, element);
    hint(t("form_hint"));
    refresh();
    if (check) for (const field of own.fields) field.read();
    (own.fields.find((field) => field.element.classList.contains("has-error")) ?? own.fields[0] ?? { focus: () => submitButton.focus() }).focus();
  }

  function leave() {
    complain(null);
    // What was written is kept as a line, so that Escape loses nothing.
    const shown = form.fields.map((field) => ({ option: field.option, text: field.peek().text ?? "" })).filter(({ text }) => text);
    const plain = shown.length === 1 && shown[0].option === mainOption(form.entry);
    showLine(!shown.length ? "" : plain ? `/${form.entry.label} ${shown[0].text}` : lineOf(form.entry, shown));
    list.hide();
  }

  /** Say everything anew in the current language; keeps a typed line, gives an open form its command's new words. */
  function relabel() {
    input.placeholder = t("placeholder");
    input.setAttribute("aria-label", t("message_box"));
    send.setAttribute("aria-label", t("send"));
    send.title = t("send");
    complain(null);
    if (form) {
      const texts = Object.fromEntries(form.fields.map((field) => [field.option.name, field.peek().text]).filter(([, text]) => text !== undefined));
      const entry = entries().find((candidate) => candidate.name === form.entry.name);
      if (entry) showForm(entry, texts);
      else showLine("", false);
    } else hint("");
    refresh();
  }

  showLine("", false);
  return {
    relabel, refresh,
    focus: () => (form ? form.fields[0]?.focus() : input.focus()),
    fill(text) {
      showLine(text);
      list.hide();
      suggest();
    },
    reset: () => (complain(null), showLine("", false)),
  };
}
