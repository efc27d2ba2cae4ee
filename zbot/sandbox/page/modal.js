// Shows the modals that the bot opens: rows of text inputs, or labels around inputs and selects.

import { Refused, interact } from "./api.js";
import { selectItems } from "./components.js";
import { fill, h, icon, restoreFocus } from "./dom.js";
import { fileControl, grow } from "./fields.js";
import { t } from "./i18n.js";
import { createSelect } from "./listbox.js";
import { markdown } from "./markdown.js";

const ROW = 1, TEXT_INPUT = 4, TEXT_DISPLAY = 10, LABEL = 18;
const SELECTS = [3, 5, 6, 7, 8], FILE_UPLOAD = 19, RADIO_GROUP = 21, CHECKBOX_GROUP = 22, CHECKBOX = 23;
const LONG_TEXT = 2;
let count = 0;

function textInput(component, label) {
  const id = `modal-${++count}`;
  const long = component.style === LONG_TEXT;
  const input = h(long ? "textarea" : "input", { id, class: "input", rows: long ? "3" : null, type: long ? null : "text", placeholder: component.placeholder, maxlength: component.max_length, autocomplete: "off", data: { customId: component.custom_id } });
  input.value = component.value ?? "";
  const counter = component.max_length && component.max_length < 4000 ? h("span", { class: "field-count", "aria-hidden": "true" }) : null;
  const recount = () => counter && (counter.textContent = t("characters", { count: input.value.length, max: component.max_length }));
  input.addEventListener("input", () => {
    recount();
    if (long) grow(input);
  });
  recount();
  return {
    id, custom_id: component.custom_id, element: input, after: counter, focus: () => input.focus(),
    shown: () => long && grow(input),
    read() {
      const text = input.value;
      // Discord's own default is required; only an explicit false makes an input optional.
      if (component.required !== false && !text.trim()) return { error: t("fill_in", { name: label }) };
      if (text && component.min_length && text.length < component.min_length) return { error: t("too_short", { name: label, min: component.min_length }) };
      if (component.max_length && text.length > component.max_length) return { error: t("too_long", { name: label, max: component.max_length }) };
      return { value: text };
    },
  };
}

function selectInput(component, label, { users, channels }) {
  const id = `modal-${++count}`;
  const optional = component.required === false;
  const one = component.type === RADIO_GROUP;
  const min = optional ? 0 : component.min_values ?? 1;
  const max = one ? 1 : component.max_values ?? (component.type === CHECKBOX_GROUP ? component.options.length : 1);
  const values = (component.options ?? []).filter((option) => option.default).map((option) => option.value);
  const select = createSelect({ id, label, placeholder: component.placeholder, items: selectItems(component, { users, channels }), values, min, max });
  select.element.dataset.customId = component.custom_id;
  return {
    id, custom_id: component.custom_id, element: select.element, focus: select.focus,
    read() {
      if (select.values.length < min) return { error: max > 1 ? t("choose_between", { name: label, min, max }) : t("pick_one", { name: label }) };
      return { value: one ? select.values[0] ?? null : select.values };
    },
  };
}

function checkbox(component, label) {
  const id = `modal-${++count}`;
  const input = h("input", { id, type: "checkbox", class: "checkbox", "aria-label": label, data: { customId: component.custom_id } });
  input.checked = Boolean(component.default);
  return { id, custom_id: component.custom_id, element: input, optional: true, focus: () => input.focus(), read: () => ({ value: input.checked }) };
}

function fileInput(component, label) {
  const id = `modal-${++count}`;
  const control = fileControl({ name: label }, id);
  return {
    id, custom_id: component.custom_id, element: control.element, focus: control.focus,
    read() {
      const read = control.read();
      if (read.empty) return component.required === false ? { value: [] } : { error: t("fill_in", { name: label }) };
      return read.error ? read : { value: [read.value] };
    },
  };
}

/** Make the modal in a dialog element. Returns `open({interaction_id, modal})`. `answered(id, channel_id)` resolves to why a submission failed, or to nothing. */
export function createModal(dialog, { state, people, answered }) {
  let current = null;

  function control(component, label) {
    if (component?.type === TEXT_INPUT) return textInput(component, label);
    if ([...SELECTS, RADIO_GROUP, CHECKBOX_GROUP].includes(component?.type)) return selectInput(component, label, state);
    if (component?.type === CHECKBOX) return checkbox(component, label);
    if (component?.type === FILE_UPLOAD) return fileInput(component, label);
    return null;
  }

  function fieldOf(component, fields) {
    if (component.type === TEXT_DISPLAY) return h("div", { class: "md" }, markdown(component.content ?? "", people));
    const inner = component.type === ROW ? component.components?.[0] : component.type === LABEL ? component.component : component;
    const label = component.type === LABEL ? component.label : inner?.label ?? "";
    const made = control(inner, label);
    if (!made) return h("p", { class: "subtext" }, t("unsupported"));
    const error = h("p", { class: "field-error", id: `${made.id}-error`, hidden: true });
    made.element.setAttribute("aria-describedby", `${made.id}-about ${made.id}-error`);
    const element = h("div", { class: "field", data: { field: made.custom_id } },
      h("div", { class: "field-head" }, h("label", { for: made.id, class: "field-name" }, label), inner.required !== false && !made.optional ? h("span", { class: "field-required" }, t("required")) : null, made.after),
      component.description ? h("p", { class: "field-about", id: `${made.id}-about` }, component.description) : null, made.element, error);
    made.tell = (message) => {
      error.hidden = !message;
      error.textContent = message ?? "";
      element.classList.toggle("has-error", Boolean(message));
      made.element.toggleAttribute("aria-invalid", Boolean(message));
    };
    element.addEventListener("input", () => made.tell(null));
    fields.push(made);
    return element;
  }

  async function submit(event, fields, problem, button) {
    event.preventDefault();
    const read = fields.map((field) => ({ field, ...field.read() }));
    for (const one of read) one.field.tell(one.error ?? null);
    const wrong = read.find((one) => one.error);
    if (wrong) return wrong.field.focus();
    const { interaction_id, channel_id } = current;
    const complain = (text) => {
      fill(problem, text ? icon("alert") : null, text);
      problem.hidden = !text;
    };
    complain("");
    button.disabled = true;
    button.classList.add("is-pending");
    try {
      const values = Object.fromEntries(read.map(({ field, value }) => [field.custom_id, value]));
      const answer = await interact({ user: state.me.id, channel: channel_id, kind: "modal", interaction_id, values });
      // A modal that the bot did not take stays open with what was written in it.
      const failure = await answered(answer.id, channel_id);
      if (!failure) {
        if (current?.interaction_id === interaction_id) dialog.close();
      } else complain(failure);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      complain(error.status === 0 ? t("unreachable") : error.status === 409 ? t("bot_offline", { name: state.bot.name }) : error.message);
    } finally {
      button.disabled = false;
      button.classList.remove("is-pending");
    }
  }

  dialog.addEventListener("close", () => {
    // The event comes late: another modal may have taken the place of this one.
    if (dialog.open) return;
    restoreFocus(current?.back);
    current = null;
  });

  return function open({ interaction_id, modal }) {
    const fields = [];
    const problem = h("p", { class: "composer-error", role: "alert", hidden: true });
    const button = h("button", { class: "btn btn-primary", type: "submit" }, h("span", {}, t("submit")), h("span", { class: "spinner", "aria-hidden": "true" }));
    const form = h("form", { class: "modal-form", novalidate: true },
      h("header", { class: "modal-head" }, h("h2", { id: "modal-title" }, modal.title), h("button", { class: "icon-button", type: "button", "aria-label": t("close"), on: { click: () => dialog.close() } }, icon("close"))),
      h("div", { class: "modal-fields" }, (modal.components ?? []).map((component) => fieldOf(component, fields))), problem,
      h("footer", { class: "modal-foot" }, h("button", { class: "btn btn-secondary", type: "button", on: { click: () => dialog.close() } }, t("cancel")), button));
    form.addEventListener("submit", (event) => submit(event, fields, problem, button));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    dialog.setAttribute("aria-labelledby", "modal-title");
    const back = document.activeElement;
    if (dialog.open) dialog.close();
    current = { interaction_id, channel_id: state.channel_id, back };
    fill(dialog, form);
    dialog.showModal();
    for (const field of fields) field.shown?.();
    fields[0]?.focus();
  };
}
