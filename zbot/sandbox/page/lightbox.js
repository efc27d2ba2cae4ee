// Shows pictures large, one at a time, over everything else.

import { fill, h, icon, restoreFocus } from "./dom.js";
import { t } from "./i18n.js";
import { localAddress } from "./media.js";

// A picture smaller than the window is enlarged at most this much, so that the small model's pictures can be looked at.
const MAX_ENLARGEMENT = 2.5;
const SWIPE_PX = 50;

/** Make the lightbox in a dialog element. Returns `open(pictures, index)`. */
export function createLightbox(dialog) {
  let pictures = [];
  let at = 0;
  let actual = false;
  let back = null;
  let touchX = null;

  const image = h("img", { class: "lightbox-picture", draggable: "false" });
  const stage = h("div", { class: "lightbox-stage" }, image);

  function show(index) {
    at = (index + pictures.length) % pictures.length;
    actual = false;
    draw();
    dialog.querySelector(".lightbox-stage").focus();
  }

  function fit() {
    const { width, height } = pictures[at] ?? {};
    const natural = { width: width || image.naturalWidth, height: height || image.naturalHeight };
    dialog.classList.toggle("is-actual", actual);
    if (!natural.width) return;
    const room = { width: stage.clientWidth, height: stage.clientHeight };
    const fitting = Math.min(MAX_ENLARGEMENT, room.width / natural.width, room.height / natural.height);
    const scale = actual ? 1 : fitting;
    // A small picture is shown enlarged, so that its own size is the smaller one.
    dialog.classList.toggle("shrinks", actual === (fitting < 1));
    image.style.width = `${Math.round(natural.width * scale)}px`;
    image.style.height = `${Math.round(natural.height * scale)}px`;
  }

  function draw() {
    const picture = pictures[at];
    const address = localAddress(picture.url);
    const many = pictures.length > 1;
    image.src = address;
    image.alt = picture.description ?? picture.filename ?? t("picture");
    const size = picture.width && picture.height ? `${picture.width} × ${picture.height}` : null;
    fill(dialog,
      h("header", { class: "lightbox-head" },
        many ? h("span", { class: "lightbox-count", "aria-live": "polite" }, t("position", { index: at + 1, count: pictures.length })) : h("span"),
        h("a", { class: "lightbox-open", href: address, target: "_blank", rel: "noopener" }, icon("open"), h("span", {}, t("open_original"))),
        h("button", { class: "icon-button", type: "button", "aria-label": t("close"), title: t("close"), on: { click: () => dialog.close() } }, icon("close"))),
      many ? h("button", { class: "lightbox-step is-left", type: "button", "aria-label": t("previous"), on: { click: () => show(at - 1) } }, icon("left")) : null,
      stage,
      many ? h("button", { class: "lightbox-step is-right", type: "button", "aria-label": t("next"), on: { click: () => show(at + 1) } }, icon("right")) : null,
      h("p", { class: "lightbox-caption" }, h("span", { class: "lightbox-text" }, picture.description || picture.filename), size ? h("span", { class: "lightbox-size" }, size) : null));
    dialog.setAttribute("aria-label", t("lightbox"));
    fit();
  }

  stage.tabIndex = -1;
  image.addEventListener("load", fit);
  image.addEventListener("click", () => {
    actual = !actual;
    fit();
  });
  window.addEventListener("resize", () => dialog.open && fit());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target === stage) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && pictures.length > 1) show(at + step);
    else if (event.key === "Home") show(0);
    else if (event.key === "End") show(pictures.length - 1);
    else return;
    event.preventDefault();
  });
  stage.addEventListener("touchstart", (event) => (touchX = event.touches.length === 1 && !actual ? event.touches[0].clientX : null), { passive: true });
  stage.addEventListener("touchend", (event) => {
    const moved = touchX === null ? 0 : event.changedTouches[0].clientX - touchX;
    if (Math.abs(moved) > SWIPE_PX && pictures.length > 1) show(at + (moved < 0 ? 1 : -1));
  });
  dialog.addEventListener("close", () => {
    restoreFocus(back);
  });

  return function open(list, index = 0) {
    pictures = list;
    back = document.activeElement;
    actual = false;
    at = index;
    draw();
    dialog.showModal();
    show(index);
  };
}
