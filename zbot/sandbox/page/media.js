// Shows what a message carries: pictures in a grid that keeps its place while they load or change, files as rows.

import { h, icon, sizeText } from "./dom.js";
import { t } from "./i18n.js";

const LARGEST_SINGLE_PX = { width: 460, height: 440 };
// The pictures of a small model are shown a little larger than they are, never more than this.
const MAX_ENLARGEMENT = 1.5;

/** Give an address as this page may load it: that of the sandbox itself, whatever loopback name it was written with. */
export function localAddress(url) {
  try {
    const target = new URL(url, location.href);
    if (["127.0.0.1", "localhost", "[::1]"].includes(target.hostname)) return target.pathname + target.search;
    return target.protocol === "blob:" ? url : null;
  } catch {
    return null;
  }
}

export function isPicture(attachment) {
  return (attachment.content_type ?? "").startsWith("image/") || /\.(png|jpe?g|webp|gif)$/i.test(attachment.filename ?? "");
}

/** Compare two media by what the layout sees of them, so that a preview can be exchanged in place. */
function sameFrame(image, picture) {
  return image.dataset.frame === `${picture.width}x${picture.height}`;
}

function picturePart(picture, index, count, open) {
  const image = h("img", { alt: picture.description ?? "", decoding: "async", width: picture.width, height: picture.height, draggable: "false" });
  const button = h("button", { class: "picture", type: "button", on: { click: () => open(index) } }, image);
  return updatePart(button, picture, index, count);
}

function updatePart(button, picture, index, count) {
  const image = button.firstElementChild;
  const address = localAddress(picture.url);
  image.dataset.frame = `${picture.width}x${picture.height}`;
  // The element is kept: a browser shows the old picture until the new one is there, so nothing blinks or jumps.
  if (address !== null && image.getAttribute("src") !== address) image.src = address;
  image.alt = picture.description ?? "";
  button.setAttribute("aria-label", t("open_picture", { index: index + 1, count, name: picture.description || picture.filename || t("picture") }));
  return button;
}

/** Draw or update a grid of pictures `{url, filename, description, width, height}`; `open(index)` shows one large. */
export function pictureGrid(grid, pictures, open) {
  const old = grid ? [...grid.children] : [];
  const same = old.length === pictures.length && pictures.every((picture, index) => sameFrame(old[index].firstElementChild, picture));
  if (same) {
    pictures.forEach((picture, index) => updatePart(old[index], picture, index, pictures.length));
    return grid;
  }
  const made = h("div", { class: `pictures pictures-${Math.min(pictures.length, 5)}` }, pictures.map((picture, index) => picturePart(picture, index, pictures.length, open)));
  const [first] = pictures;
  // Pictures of one shape keep it; a mixture is cropped to squares in the grid and whole in the lightbox.
  const alike = pictures.every((picture) => picture.width * first.height === first.width * picture.height);
  if (alike && first.width && first.height) made.style.setProperty("--shape", `${first.width} / ${first.height}`);
  if (pictures.length === 1 && first.width && first.height) {
    const scale = Math.min(MAX_ENLARGEMENT, LARGEST_SINGLE_PX.width / first.width, LARGEST_SINGLE_PX.height / first.height);
    made.style.maxWidth = `${Math.round(first.width * scale)}px`;
  }
  return made;
}

/** Draw a file that is not a picture. */
export function fileRow(attachment) {
  const address = localAddress(attachment.url);
  return h("a", { class: "file", href: address, target: "_blank", rel: "noopener", "aria-label": t("download", { name: attachment.filename }) },
    icon("file"), h("span", { class: "file-name" }, attachment.filename), h("span", { class: "file-size" }, sizeText(attachment.size ?? 0)));
}

/** Draw one embed. `open(pictures, index)` shows its image large. */
export function embedElement(embed, { text, inlineText, time, open }) {
  const picture = (media, name) => {
    const address = media?.url ? localAddress(media.proxy_url ?? media.url) : null;
    if (address === null) return media?.url ? h("p", { class: "outside", title: t("opens_outside") }, media.url) : null;
    const shown = { ...media, url: address, filename: address.split("/").at(-1).split("?")[0], description: media.description ?? embed.title };
    const button = picturePart(shown, 0, 1, () => open([shown], 0));
    button.classList.add(name);
    if (media.width && media.height) button.style.setProperty("--shape", `${media.width} / ${media.height}`);
    return button;
  };
  const author = embed.author?.name ? h("p", { class: "embed-author" }, embed.author.name) : null;
  const fields = embed.fields?.length
    ? h("dl", { class: "embed-fields" }, embed.fields.map((field) => h("div", { class: field.inline ? "embed-field is-inline" : "embed-field" }, h("dt", {}, inlineText(field.name)), h("dd", { class: "md" }, text(field.value)))))
    : null;
  const footer = embed.footer?.text || embed.timestamp
    ? h("p", { class: "embed-footer" }, embed.footer?.text, embed.footer?.text && embed.timestamp ? " · " : null, embed.timestamp ? time(Date.parse(embed.timestamp) / 1000) : null)
    : null;
  const article = h("article", { class: "embed" },
    h("div", { class: "embed-body" },
      h("div", { class: "embed-text" }, author, embed.title ? h("h3", { class: "embed-title" }, inlineText(embed.title)) : null, embed.description ? h("div", { class: "md" }, text(embed.description)) : null, fields),
      embed.thumbnail ? picture(embed.thumbnail, "embed-thumbnail") : null),
    picture(embed.image, "embed-image"), footer);
  if (Number.isInteger(embed.color)) article.style.setProperty("--bar", `#${embed.color.toString(16).padStart(6, "0")}`);
  return article;
}
