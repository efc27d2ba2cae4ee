// One list of choices for everything that offers some: commands, autocomplete, selects. It floats in the top layer.

import { emoji, fill, h, icon } from "./dom.js";
import { t } from "./i18n.js";

const GAP_PX = 6;
let count = 0;

/** Make a floating listbox. `onPick(item)` is told what was chosen; the owner keeps the focus and forwards keys to `key`. */
export function createListbox({ label, onPick, onClose = () => {}, multiple = false, wide = false }) {
  const id = `list-${++count}`;
  const element = h("div", {
    id, class: `listbox${wide ? " listbox-wide" : ""}`, role: "listbox", popover: "manual", "aria-label": label,
    "aria-multiselectable": multiple ? "true" : null,
  });
  let items = [];
  let active = -1;
  let anchor = null;
  let frame = null;
  let chosen = new Set();

  function place() {
    if (!frame?.isConnected) return hide();
    const box = frame.getBoundingClientRect();
    // Opening upwards it leaves the name of its own field to be read.
    const top = (frame.closest(".field") ?? frame).getBoundingClientRect().top;
    const view = window.visualViewport ?? { width: innerWidth, height: innerHeight };
    const below = view.height - box.bottom - GAP_PX * 2;
    const above = top - GAP_PX * 2;
    const wanted = Math.min(element.scrollHeight + 2, 340);
    // In the composer it opens upwards, away from the buttons that one needs next.
    const up = frame.closest(".composer") ? above > Math.min(wanted, below) : below < wanted && above > below;
    const width = wide ? box.width : Math.max(box.width, Math.min(220, view.width - 16));
    element.style.width = `${width}px`;
    element.style.left = `${Math.max(8, Math.min(box.left, view.width - width - 8))}px`;
    element.style.maxHeight = `${Math.max(120, Math.min(340, up ? above : below))}px`;
    element.style.top = up ? "auto" : `${box.bottom + GAP_PX}px`;
    element.style.bottom = up ? `${innerHeight - top + GAP_PX}px` : "auto";
  }

  function outside(event) {
    if (!element.contains(event.target) && !frame.contains(event.target)) hide();
  }

  function mark(index, scroll = true) {
    active = index;
    [...element.querySelectorAll("[role=option]")].forEach((option, at) => {
      option.classList.toggle("is-active", at === active);
      if (at === active && scroll) option.scrollIntoView({ block: "nearest" });
    });
    if (active >= 0) anchor?.setAttribute("aria-activedescendant", `${id}-${active}`);
    else anchor?.removeAttribute("aria-activedescendant");
  }

  function draw(message) {
    fill(element, items.map((item, index) => {
      const selected = chosen.has(item.value);
      const option = h("div", { id: `${id}-${index}`, role: "option", class: "option", "aria-selected": String(selected), "aria-disabled": item.disabled ? "true" : null, data: { value: String(item.value) } },
        item.emoji ? emoji(item.emoji) : null,
        h("span", { class: "option-text" }, h("span", { class: "option-label" }, item.label), item.hint ? h("span", { class: "option-hint" }, item.hint) : null,
          item.detail ? h("span", { class: "option-detail" }, item.detail) : null),
        item.side ? h("span", { class: "option-side" }, item.side) : null,
        selected ? icon("check") : null);
      option.addEventListener("pointermove", () => active !== index && mark(index, false));
      // Not click: the focus has to stay in the field that owns the list.
      option.addEventListener("pointerdown", (event) => event.preventDefault());
      option.addEventListener("click", () => pick(index));
      return option;
    }), items.length === 0 && message ? h("p", { class: "option-none" }, message) : null);
  }

  function pick(index = active) {
    const item = items[index];
    if (!item || item.disabled) return false;
    if (multiple) {
      if (!chosen.delete(item.value)) chosen.add(item.value);
      draw();
      mark(index, false);
    } else hide();
    onPick(item, chosen);
    return true;
  }

  /** Show these items under or above `frame` (`owner` itself unless given), with `message` when there are none. */
  function show(owner, list, { values = [], message = t("nothing_found"), frame: around = owner } = {}) {
    anchor = owner;
    frame = around;
    items = list;
    chosen = new Set(values);
    draw(message);
    if (!element.isConnected) (owner.closest("dialog") ?? document.body).append(element);
    if (!isOpen()) {
      element.showPopover();
      document.addEventListener("pointerdown", outside, true);
      window.addEventListener("resize", place);
      window.addEventListener("scroll", place, true);
    }
    owner.setAttribute("aria-expanded", "true");
    owner.setAttribute("aria-controls", id);
    place();
    const wanted = items.findIndex((item) => chosen.has(item.value));
    mark(items.length ? Math.max(0, wanted) : -1);
  }

  function isOpen() {
    return element.isConnected && element.matches(":popover-open");
  }

  function hide() {
    if (!isOpen()) return;
    element.hidePopover();
    document.removeEventListener("pointerdown", outside, true);
    window.removeEventListener("resize", place);
    window.removeEventListener("scroll", place, true);
    anchor?.setAttribute("aria-expanded", "false");
    anchor?.removeAttribute("aria-activedescendant");
    element.remove();
    onClose(chosen);
  }

  /** Take a key that the owner received; true means that the list used it. */
  function key(event) {
    if (!isOpen() || event.isComposing) return false;
    const last = items.length - 1;
    if (event.key === "ArrowDown") mark(active >= last ? 0 : active + 1);
    else if (event.key === "ArrowUp") mark(active <= 0 ? last : active - 1);
    else if (event.key === "PageDown") mark(Math.min(last, active + 6));
    else if (event.key === "PageUp") mark(Math.max(0, active - 6));
    else if (event.key === "Escape") hide();
    else if ((event.key === "Enter" && !event.shiftKey) || (event.key === "Tab" && !event.shiftKey && !multiple)) return pick();
    else return false;
    return true;
  }

  return { id, show, hide, key, isOpen, get activeItem() { return items[active]; } };
}

/** Make a select: a button that opens a listbox. `onChange(values)` runs once a choice stands. */
export function createSelect({ label, items, values = [], min = 1, max = 1, placeholder, disabled = false, onChange = () => {}, id = null }) {
  const multiple = max > 1;
  let selected = values.slice();
  const text = h("span", { class: "select-text" });
  const button = h("button", { type: "button", class: "select", id, role: "combobox", "aria-haspopup": "listbox", "aria-expanded": "false", "aria-label": label, disabled }, text, icon("down"));

  function draw() {
    const names = items.filter((item) => selected.includes(item.value)).map((item) => item.label);
    text.textContent = names.length === 0 ? placeholder || t("choose") : names.length > 2 ? t("chosen", { count: names.length }) : names.join(", ");
    button.classList.toggle("is-empty", names.length === 0);
    button.setAttribute("aria-label", label ? `${label}: ${text.textContent}` : text.textContent);
  }

  const list = createListbox({
    label,
    multiple,
    onPick(item, chosen) {
      if (multiple) {
        while (chosen.size > max) chosen.delete(chosen.values().next().value);
        selected = items.map((entry) => entry.value).filter((value) => chosen.has(value));
        draw();
        return;
      }
      // A select that may be left empty gives its choice back when it is chosen again.
      selected = selected[0] === item.value && min === 0 ? [] : [item.value];
      draw();
      onChange(selected);
    },
    onClose() {
      if (multiple && selected.length >= min && selected.join() !== opened) onChange(selected);
    },
  });
  let opened = "";
  function open() {
    opened = selected.join();
    list.show(button, items, { values: selected });
  }
  button.addEventListener("click", () => (list.isOpen() ? list.hide() : open()));
  button.addEventListener("keydown", (event) => {
    if (list.isOpen()) {
      if (event.key === " ") {
        event.preventDefault();
        list.key(new KeyboardEvent("keydown", { key: "Enter" }));
      } else if (event.key === "Tab") list.hide();
      else if (list.key(event)) {
        event.preventDefault();
        event.stopPropagation();
      } else if (event.key.length === 1) {
        const found = items.find((item) => item.label.toLowerCase().startsWith(event.key.toLowerCase()));
        if (found) list.show(button, items, { values: multiple ? selected : [found.value] });
      }
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      open();
    }
  });
  button.addEventListener("blur", () => setTimeout(() => document.activeElement !== button && list.hide()));
  draw();
  return {
    element: button,
    get values() { return selected; },
    set values(next) { selected = next.slice(); draw(); },
    focus: () => button.focus(),
  };
}
