// Draws what stands around the messages: channels, who one is, the head of the channel, the welcome in an empty one.

import { avatar, fill, h, icon } from "./dom.js";
import { EXAMPLES, currentLocale, t } from "./i18n.js";

const NARROW = "(max-width: 760px)";

/** Make the side. `actions`: choose(channel_id), become(user_id). Returns `draw()` and `close()`. */
export function createSide({ side, scrim, main, state, actions }) {
  const narrow = matchMedia(NARROW);

  function setOpen(open, focus = true) {
    const drawer = narrow.matches;
    const shown = open || !drawer;
    side.classList.toggle("is-open", drawer && open);
    side.inert = !shown;
    main.inert = drawer && open;
    scrim.hidden = !(drawer && open);
    const opener = document.getElementById("open-side");
    opener?.setAttribute("aria-expanded", String(drawer && open));
    if (!drawer || !focus) return;
    if (open) (side.querySelector("[aria-current=page]") ?? side.querySelector("button"))?.focus();
    else opener?.focus();
  }
  narrow.addEventListener("change", () => setOpen(false, false));
  scrim.addEventListener("click", () => setOpen(false));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && side.classList.contains("is-open")) setOpen(false);
  });

  function channelButton(channel) {
    const current = channel.id === state.channel_id;
    const unread = !current && state.unread.has(channel.id);
    return h("li", {}, h("button", {
      class: `channel${current ? " is-current" : ""}${unread ? " is-unread" : ""}`, type: "button", "aria-current": current ? "page" : null, data: { channelId: channel.id, channelName: channel.name },
      on: {
        click() {
          setOpen(false, false);
          actions.choose(channel.id);
        },
      },
    }, channel.kind === "dm" ? avatar(state.bot.name, true) : h("span", { class: "hash", "aria-hidden": "true" }, "#"), h("span", { class: "channel-name" }, channel.name),
    unread ? h("span", { class: "unread-dot" }, h("span", { class: "sr-only" }, t("unread"))) : null));
  }

  function personOption(user) {
    const language = new Intl.DisplayNames([currentLocale()], { type: "language" }).of(user.locale.split("-")[0]);
    const input = h("input", { type: "radio", name: "person", value: user.id, class: "sr-only", data: { person: user.name }, on: { change: () => actions.become(user.id) } });
    input.checked = user.id === state.me.id;
    return h("label", { class: `person${input.checked ? " is-me" : ""}`, data: { person: user.name } }, input, avatar(user.display_name, false),
      h("span", { class: "person-text" }, h("span", { class: "person-name" }, user.display_name), h("span", { class: "person-about" }, `${t(user.moderator ? "moderator" : "member")} · ${language}`)), icon("check"));
  }

  function draw() {
    const hadFocus = side.contains(document.activeElement) ? document.activeElement : null;
    const guilds = new Map();
    for (const channel of state.channels) {
      const name = channel.kind === "dm" ? t("direct_messages") : channel.guild ?? t("channels");
      guilds.set(name, [...(guilds.get(name) ?? []), channel]);
    }
    side.setAttribute("aria-label", t("channels"));
    fill(side,
      h("header", { class: "brand" }, avatar("z", true), h("div", {}, h("p", { class: "brand-name" }, "zbot"), h("p", { class: "brand-note" }, t("brand_note"))),
        h("button", { class: "icon-button side-close", type: "button", "aria-label": t("close_channels"), on: { click: () => setOpen(false) } }, icon("close"))),
      h("div", { class: "channels" }, [...guilds].map(([name, channels], index) => h("section", { "aria-labelledby": `guild-${index}` }, h("h2", { class: "guild", id: `guild-${index}` }, name), h("ul", {}, channels.map(channelButton))))),
      h("fieldset", { class: "people" }, h("legend", { title: t("you_are_hint") }, t("you_are")), state.users.map(personOption)));
    if (hadFocus?.dataset.channelId) side.querySelector(`[data-channel-id="${hadFocus.dataset.channelId}"]`)?.focus();
    else if (hadFocus?.name === "person") side.querySelector("input:checked")?.focus();
  }

  setOpen(false, false);
  return { draw, open: () => setOpen(true), close: () => setOpen(false, false) };
}

/** Draw the head of the channel that is shown. */
export function drawHead(head, state, openSide) {
  const channel = state.channels.find((entry) => entry.id === state.channel_id);
  const online = state.bot.online && state.connected;
  fill(head,
    h("button", { id: "open-side", class: "icon-button", type: "button", "aria-label": t("open_channels"), "aria-expanded": "false", "aria-controls": "side", on: { click: openSide } }, icon("menu"), state.unread.size ? h("span", { class: "unread-dot" }) : null),
    h("h1", { class: "head-title" }, channel?.kind === "dm" ? null : h("span", { class: "hash", "aria-hidden": "true" }, "#"), channel?.name),
    channel?.guild ? h("span", { class: "head-guild" }, channel.guild) : null,
    h("span", { class: `status${online ? " is-online" : ""}`, id: "status" }, h("span", { class: "status-dot", "aria-hidden": "true" }), h("span", {}, t(online ? "online" : "offline", { name: state.bot.name }))));
}

/** Draw the welcome of a channel without messages; an example's button hands its line to `use`. */
export function drawWelcome(holder, use) {
  fill(holder, h("div", { class: "welcome" },
    avatar("z", true), h("h2", {}, t("welcome_title")), h("p", {}, t("welcome_body")), h("p", { class: "welcome-how" }, t("welcome_how")),
    h("div", { class: "examples" }, EXAMPLES.map(({ lang, prompt }) => h("button", { class: "example", type: "button", lang, on: { click: () => use(`/imagine ${prompt}`) } }, h("span", { class: "example-command" }, "/imagine"), " ", prompt))),
    h("p", { class: "welcome-more" }, t(matchMedia(NARROW).matches ? "welcome_more_phone" : "welcome_more"))));
}
