// Draws message components: the legacy rows of buttons and selects, and the layout components of version 2.

import { emoji, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { createSelect } from "./listbox.js";
import { fileRow, localAddress, pictureGrid } from "./media.js";

const STYLES = { 1: "primary", 2: "secondary", 3: "success", 4: "danger", 5: "link", 6: "primary" };
const USER_SELECT = 5;
const CHANNEL_SELECT = 8;

function buttonElement(component, view) {
  const name = STYLES[component.style] ?? "secondary";
  const label = component.label ? h("span", {}, component.label) : null;
  if (component.style === 5) {
    const address = component.url ? localAddress(component.url) : null;
    const inside = [emoji(component.emoji), label, icon("open")];
    if (address === null || component.disabled) return h("span", { class: "btn btn-link is-outside", title: `${t("opens_outside")}: ${component.url}` }, inside, h("span", { class: "sr-only" }, component.url));
    return h("a", { class: "btn btn-link", href: address, target: "_blank", rel: "noopener" }, inside);
  }
  const pending = view.isPending(component.custom_id);
  return h("button", {
    class: `btn btn-${name}${pending ? " is-pending" : ""}${label ? "" : " btn-icon"}`, type: "button", disabled: component.disabled, "aria-busy": pending ? "true" : null,
    "aria-label": label ? null : component.emoji?.name ?? component.custom_id, data: { customId: component.custom_id ?? "" },
    on: { click: () => !view.isPending(component.custom_id) && view.press(component.custom_id) },
  }, emoji(component.emoji), label, h("span", { class: "spinner", "aria-hidden": "true" }));
}

/** Say what a select offers: its own options, or the people or channels there are. */
export function selectItems(component, { users, channels }) {
  if (component.type === USER_SELECT) return users.map((user) => ({ value: user.id, label: user.display_name, hint: user.name }));
  if (component.type === CHANNEL_SELECT) return channels.map((channel) => ({ value: channel.id, label: `#${channel.name}` }));
  return (component.options ?? []).map((option) => ({ value: option.value, label: option.label, detail: option.description, emoji: option.emoji }));
}

function selectElement(component, view) {
  const values = (component.options ?? []).filter((option) => option.default).map((option) => option.value);
  const select = createSelect({
    label: component.placeholder ?? "", placeholder: component.placeholder, items: selectItems(component, view), values,
    min: component.min_values ?? 1, max: component.max_values ?? 1, disabled: component.disabled,
    onChange: (chosen) => view.press(component.custom_id, chosen),
  });
  select.element.dataset.customId = component.custom_id;
  select.element.classList.toggle("is-pending", view.isPending(component.custom_id));
  return select.element;
}

function mediaItems(items) {
  return items.map((item) => ({
    url: item.media?.url ?? "", description: item.description ?? undefined, width: item.media?.width, height: item.media?.height,
    filename: (item.media?.url ?? "").split("?")[0].split("/").at(-1), spoiler: item.spoiler,
  }));
}

function gallery(component, view) {
  const pictures = mediaItems(component.items ?? []);
  return pictureGrid(null, pictures, (index) => view.open(pictures, index));
}

/** Draw one component of a message. `view` gives press, isPending, open, text, users and channels. */
export function componentElement(component, view) {
  const inside = () => (component.components ?? []).map((child) => componentElement(child, view));
  switch (component.type) {
    case 1: return h("div", { class: "row" }, inside());
    case 2: return buttonElement(component, view);
    case 3: case 5: case 6: case 7: case 8: return selectElement(component, view);
    case 9: return h("div", { class: "part-section" }, h("div", { class: "part-section-text" }, inside()), component.accessory ? componentElement(component.accessory, view) : null);
    case 10: return h("div", { class: "md" }, view.text(component.content ?? ""));
    case 11: {
      const grid = gallery({ items: [component] }, view);
      grid.classList.add("part-thumbnail");
      return grid;
    }
    case 12: return gallery(component, view);
    case 13: return fileRow({ url: component.file?.url, filename: component.name ?? component.file?.url?.split("?")[0].split("/").at(-1) ?? "", size: component.size });
    case 14: return component.divider === false ? h("div", { class: `part-space part-space-${component.spacing ?? 1}` }) : h("hr", { class: `part-rule part-space-${component.spacing ?? 1}` });
    case 17: {
      const box = h("div", { class: "part-container" }, inside());
      if (Number.isInteger(component.accent_color)) box.style.setProperty("--bar", `#${component.accent_color.toString(16).padStart(6, "0")}`);
      return box;
    }
    default: return h("p", { class: "subtext" }, t("unsupported"));
  }
}

/** Collect the addresses of media that components and embeds already show, so that they are not shown twice. */
export function shownMedia(message) {
  const found = new Set();
  const walk = (value) => {
    if (Array.isArray(value)) value.forEach(walk);
    else if (value && typeof value === "object") {
      if (typeof value.url === "string") found.add(value.url);
      Object.values(value).forEach(walk);
    }
  };
  walk(message.embeds);
  walk(message.components);
  return found;
}
