// One form field for each type of command option; every field can be read, focused and told what is wrong with it.

import { fill, h, icon, sizeText } from "./dom.js";
import { Refused, upload } from "./api.js";
import { ATTACHMENT, BOOLEAN, CHANNEL, INTEGER, NUMBER, USER, choiceLabel, coerce, optionLabel } from "./commands.js";
import { localised, t } from "./i18n.js";
import { createListbox, createSelect } from "./listbox.js";

const TYPING_PAUSE_MS = 150;
let count = 0;

/** Let a textarea be as tall as its text, up to the limit in its style sheet. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

function rangeText(option) {
  const { min_value: min, max_value: max } = option;
  if (min !== undefined && max !== undefined) return t("range", { min, max });
  if (min !== undefined) return t("range_from", { min });
  return max !== undefined ? t("range_to", { max }) : "";
}

function selectControl(option, items, initial, id) {
  const select = createSelect({ id, label: optionLabel(option), items, values: initial === undefined ? [] : [initial] });
  return {
    element: select.element,
    focus: select.focus,
    read: () => (select.values.length ? { value: select.values[0], text: items.find((item) => item.value === select.values[0]).label } : { empty: true }),
  };
}

function switchControl(option, initial, id) {
  const input = (value) => h("input", { type: "radio", name: id, value: String(value), id: value ? id : null });
  const [yes, no] = [input(true), input(false)];
  (initial === false ? no : yes).checked = initial !== undefined;
  return {
    element: h("div", { class: "segments", role: "radiogroup", "aria-label": optionLabel(option) }, h("label", {}, yes, h("span", {}, t("yes"))), h("label", {}, no, h("span", {}, t("no")))),
    focus: () => yes.focus(),
    read: () => (yes.checked || no.checked ? { value: yes.checked, text: yes.checked ? t("yes") : t("no") } : { empty: true }),
  };
}

function textControl(option, initial, id, { onSubmit, people, complete }) {
  const number = option.type === INTEGER || option.type === NUMBER;
  const lines = !number && !option.autocomplete;
  const input = h(lines ? "textarea" : "input", {
    id, class: "input", rows: lines ? "1" : null, type: lines ? null : "text", inputmode: number ? (option.type === INTEGER && !(option.min_value < 0) ? "numeric" : "decimal") : null,
    autocomplete: "off", spellcheck: lines ? "true" : "false", placeholder: option.autocomplete ? t("search") : number ? rangeText(option) : null,
    role: option.autocomplete ? "combobox" : null, "aria-autocomplete": option.autocomplete ? "list" : null, "aria-expanded": option.autocomplete ? "false" : null, enterkeyhint: "send",
  });
  input.value = initial ?? "";
  // What was chosen from the live list: its name is shown, its value is sent, until the person types on.
  let chosen = null;
  let list = null;

  if (option.autocomplete) {
    let timer = 0;
    let asking = null;
    list = createListbox({
      label: optionLabel(option),
      onPick(item) {
        chosen = { value: item.value, text: item.label };
        input.value = item.label;
      },
    });
    const search = async () => {
      asking?.abort();
      const own = (asking = new AbortController());
      if (input.value && !list.isOpen()) list.show(input, [], { message: t("searching") });
      try {
        const choices = await complete(option, input.value, own.signal);
        if (own.signal.aborted || document.activeElement !== input) return;
        // Where there is nothing to choose from, the field says so itself and covers nothing.
        input.placeholder = t(choices.length || input.value ? "search" : "nothing_to_choose");
        if (!choices.length && !input.value) return list.hide();
        list.show(input, choices.map((choice) => ({ value: choice.value, label: choiceLabel(choice) })));
      } catch {
        if (!own.signal.aborted) list.show(input, []);
      }
    };
    input.addEventListener("input", () => {
      chosen = null;
      clearTimeout(timer);
      timer = setTimeout(search, TYPING_PAUSE_MS);
    });
    input.addEventListener("focus", search);
    input.addEventListener("blur", () => {
      clearTimeout(timer);
      asking?.abort();
      setTimeout(() => document.activeElement !== input && list.hide());
    });
  }
  if (lines) {
    input.addEventListener("input", () => grow(input));
    requestAnimationFrame(() => grow(input));
  }
  input.addEventListener("keydown", (event) => {
    // A list of suggestions takes Enter only for one that was really offered; Escape closes it before the form.
    if (list?.isOpen() && (list.activeItem || event.key === "Escape") && list.key(event)) {
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    onSubmit();
  });
  return {
    element: input,
    focus() {
      input.focus();
      input.setSelectionRange(input.value.length, input.value.length);
    },
    read() {
      if (chosen) return chosen;
      if (!input.value.trim()) return { empty: true };
      const read = coerce(option, input.value, people);
      return "error" in read ? read : { value: read.value, text: input.value.trim() };
    },
  };
}

/** Make the place where one file is dropped, pasted or chosen; it is uploaded at once and read as its id. */
export function fileControl(option, id) {
  const name = optionLabel(option);
  const picker = h("input", { type: "file", id, class: "sr-only" });
  const shown = h("div", { class: "drop-file" });
  const zone = h("div", { class: "drop" }, shown, picker);
  let stored = null;
  let uploading = false;
  let problem = null;
  let attempt = 0;
  let picture = null;

  function draw(file) {
    zone.classList.toggle("is-filled", Boolean(file));
    if (picture) URL.revokeObjectURL(picture);
    picture = file?.type.startsWith("image/") ? URL.createObjectURL(file) : null;
    if (!file) return fill(shown, icon("image"), h("span", {}, t("drop_here"), " ", h("label", { for: id, class: "text-button" }, t("choose_file"))));
    return fill(shown, picture ? h("img", { src: picture, alt: "", class: "drop-picture" }) : icon("file"), h("span", { class: "file-name" }, file.name), h("span", { class: "file-size" }, uploading ? t("uploading") : sizeText(file.size)),
      h("button", { type: "button", class: "icon-button", "aria-label": t("remove_file", { name: file.name }), on: { click: () => { attempt++; stored = null; problem = null; uploading = false; picker.value = ""; draw(null); picker.focus(); } } }, icon("close")));
  }

  async function take(file) {
    const own = ++attempt;
    [stored, problem, uploading] = [null, null, true];
    draw(file);
    try {
      const answer = await upload(file);
      if (own === attempt) stored = answer;
    } catch (error) {
      if (own === attempt) problem = (error instanceof Refused && error.message) || t("upload_failed");
    }
    if (own !== attempt) return;
    uploading = false;
    draw(file);
    shown.classList.toggle("has-problem", Boolean(problem));
    if (problem) shown.append(h("span", { class: "field-error", role: "alert" }, problem));
  }

  picker.addEventListener("change", () => picker.files[0] && take(picker.files[0]));
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("is-over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("is-over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    zone.classList.remove("is-over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  draw(null);
  return {
    element: zone,
    focus: () => picker.focus(),
    take,
    read: () => (uploading ? { error: t("still_uploading", { name }) } : problem ? { error: problem } : stored ? { value: stored.id, text: stored.filename } : { empty: true }),
  };
}

/**
 * Make the field of one option. `initial` is text as typed. Returns `{element, option, read, peek, focus, take?}`, where
 * peek() gives `{value, text}`, `{empty}` or `{error}`, and read() also shows what is wrong beside the field.
 */
export function createField(option, initial, { onSubmit, onRemove, people, complete }) {
  const id = `field-${++count}`;
  const name = optionLabel(option);
  const given = initial === undefined ? {} : coerce(option, initial, people);
  let control;
  if (option.choices?.length) control = selectControl(option, option.choices.map((choice) => ({ value: choice.value, label: choiceLabel(choice) })), given.value, id);
  else if (option.type === BOOLEAN) control = switchControl(option, given.value, id);
  else if (option.type === USER) control = selectControl(option, people.users.map((user) => ({ value: user.id, label: user.display_name, hint: user.name })), given.value, id);
  else if (option.type === CHANNEL) control = selectControl(option, people.channels.map((channel) => ({ value: channel.id, label: `#${channel.name}` })), given.value, id);
  else if (option.type === ATTACHMENT) control = fileControl(option, id);
  else control = textControl(option, initial, id, { onSubmit, people, complete });

  const error = h("p", { class: "field-error", id: `${id}-error`, hidden: true });
  const focusable = control.element.id === id ? control.element : control.element.querySelector(`#${id}`);
  focusable?.setAttribute("aria-describedby", `${id}-about ${id}-error`);
  if (option.required) focusable?.setAttribute("aria-required", "true");

  function tell(message) {
    error.hidden = !message;
    error.textContent = message ?? "";
    element.classList.toggle("has-error", Boolean(message));
    if (message) focusable?.setAttribute("aria-invalid", "true");
    else focusable?.removeAttribute("aria-invalid");
  }

  const about = localised(option.description ?? "", option.description_localizations);
  const element = h("div", { class: `field${option.required ? " is-required" : ""}${option.type === INTEGER || option.type === NUMBER || option.type === BOOLEAN || option.choices?.length ? " is-short" : ""}`, data: { field: option.name } },
    h("div", { class: "field-head" },
      h("label", { for: id, class: "field-name" }, name), option.required ? h("span", { class: "field-required" }, t("required")) : null,
      h("span", { class: "field-about", id: `${id}-about`, title: about }, about),
      option.required ? null : h("button", { type: "button", class: "icon-button field-remove", "aria-label": t("remove_option", { name }), on: { click: onRemove } }, icon("close"))),
    control.element, error);
  element.addEventListener("input", () => tell(null));
  element.addEventListener("click", () => error.hidden || tell(null));
  if (given.error) tell(given.error);

  return {
    element, option, focus: control.focus, take: control.take, peek: control.read,
    read() {
      const read = control.read();
      tell(read.error ?? (read.empty && option.required ? t("fill_in", { name }) : null));
      return read.empty && option.required ? { error: error.textContent } : read;
    },
  };
}
