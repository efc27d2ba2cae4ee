// Every word that the page itself says, in English and Simplified Chinese, and how it writes times.

const STRINGS = {
  en: {
    skip: "Skip to the message box",
    brand_note: "Sandbox on this computer",
    channels: "Channels",
    direct_messages: "Direct messages",
    open_channels: "Show channels",
    close_channels: "Hide channels",
    you_are: "You are",
    you_are_hint: "Choose who you are; each person has their own language and rights.",
    member: "Member",
    moderator: "Moderator",
    unread: "new",
    online: "{name} is online",
    offline: "{name} is offline",
    bot_offline: "{name} is offline. Commands work again as soon as the bot is back.",
    reconnecting: "No connection to the sandbox. Trying again …",
    unreachable: "The sandbox did not answer. Is it still running?",
    messages_in: "Messages in {channel}",
    jump: "New messages",
    bot_badge: "BOT",
    used: "{name} used {command}",
    answered: "In answer to {name}",
    thinking: "{name} is thinking …",
    sending: "Sending the command …",
    edited: "(edited)",
    edited_at: "Edited {time}",
    only_you: "Only you can see this",
    dismiss: "Dismiss",
    no_response: "The application did not respond",
    interaction_failed: "The bot could not answer this. Try again.",
    open_picture: "Open picture {index} of {count}: {name}",
    picture: "Picture",
    pictures: { one: "{count} picture", other: "{count} pictures" },
    new_message: "{name}: {text}",
    command_failed: "Command failed: {text}",
    opens_outside: "Address outside the sandbox, shown and not opened",
    spoiler: "Show the hidden text",
    download: "Open {name}",
    unsupported: "This part of the message cannot be shown here.",
    lightbox: "Picture at full size",
    close: "Close",
    previous: "Previous picture",
    next: "Next picture",
    open_original: "Open original",
    position: "{index} of {count}",
    message_box: "Type a command",
    placeholder: "Type / for the commands",
    send: "Send",
    commands: "Commands",
    no_command: "No command begins like this.",
    unknown_command: "There is no command /{name}. Type / to see all of them.",
    only_commands: "Only commands are sent here.",
    use_as_prompt: "Send as {command}",
    line_hint: "Enter sends · Tab opens the form",
    form_hint: "Enter sends · Shift+Enter new line · Esc closes",
    close_form: "Close the form",
    add_option: "Add {name}",
    remove_option: "Remove {name}",
    more_options: "More options",
    required: "required",
    fill_in: "Fill in “{name}”.",
    pick_one: "Choose one of the list for “{name}”.",
    whole_number: "“{name}” is a whole number.",
    a_number: "“{name}” is a number.",
    at_least: "“{name}” is at least {min}.",
    at_most: "“{name}” is at most {max}.",
    too_short: "“{name}” has at least {min} characters.",
    too_long: "“{name}” has at most {max} characters.",
    choose_between: "Choose {min} to {max} for “{name}”.",
    no_member: "There is no member “{text}”.",
    range: "{min} to {max}",
    range_from: "{min} or more",
    range_to: "up to {max}",
    choose: "Choose …",
    chosen: "{count} chosen",
    yes: "Yes",
    no: "No",
    search: "Type to search",
    searching: "Searching …",
    nothing_found: "Nothing found",
    nothing_to_choose: "Nothing to choose from",
    drop_here: "Drop a file here, paste it, or",
    choose_file: "choose a file",
    uploading: "Uploading …",
    still_uploading: "“{name}” is still being uploaded.",
    upload_failed: "The file could not be uploaded.",
    remove_file: "Remove the file {name}",
    cancel: "Cancel",
    submit: "Submit",
    characters: "{count} of {max}",
    welcome_title: "Draw pictures from chat",
    welcome_body: "This is zbot in its sandbox: the real bot in a chat that runs only on this computer. No account, no token, no graphics card. The small built-in model draws emoji-like pictures: animals, food, vehicles, places.",
    welcome_how: "Type /imagine and what you would like to see, or begin with one of these:",
    welcome_more: "Type / to see every command. On the left you can become another person or a moderator.",
    welcome_more_phone: "Type / to see every command. In the menu you can become another person or a moderator.",
    today: "Today",
    yesterday: "Yesterday",
  },
  zh: {
    skip: "跳到输入框",
    brand_note: "仅在本机运行的沙盒",
    channels: "频道",
    direct_messages: "私信",
    open_channels: "显示频道",
    close_channels: "隐藏频道",
    you_are: "当前身份",
    you_are_hint: "选择以谁的身份操作；每个人有自己的语言和权限。",
    member: "成员",
    moderator: "管理员",
    unread: "新消息",
    online: "{name} 在线",
    offline: "{name} 离线",
    bot_offline: "{name} 已离线。机器人恢复后即可继续使用命令。",
    reconnecting: "与沙盒的连接已断开，正在重试……",
    unreachable: "沙盒没有响应，它还在运行吗？",
    messages_in: "{channel} 中的消息",
    jump: "有新消息",
    bot_badge: "机器人",
    used: "{name} 使用了 {command}",
    answered: "回复 {name}",
    thinking: "{name} 正在思考……",
    sending: "正在发送命令……",
    edited: "（已编辑）",
    edited_at: "编辑于 {time}",
    only_you: "仅你可见",
    dismiss: "忽略",
    no_response: "该应用未响应",
    interaction_failed: "机器人未能回应，请重试。",
    open_picture: "打开第 {index} 张图片，共 {count} 张：{name}",
    picture: "图片",
    pictures: { other: "{count} 张图片" },
    new_message: "{name}：{text}",
    command_failed: "命令失败：{text}",
    opens_outside: "沙盒之外的网址，仅显示，不打开",
    spoiler: "显示隐藏的文字",
    download: "打开 {name}",
    unsupported: "消息的这一部分无法在此显示。",
    lightbox: "查看原图",
    close: "关闭",
    previous: "上一张",
    next: "下一张",
    open_original: "打开原图",
    position: "第 {index} 张，共 {count} 张",
    message_box: "输入命令",
    placeholder: "输入 / 查看命令",
    send: "发送",
    commands: "命令",
    no_command: "没有以此开头的命令。",
    unknown_command: "没有命令 /{name}。输入 / 查看全部命令。",
    only_commands: "这里只能发送命令。",
    use_as_prompt: "用 {command} 发送",
    line_hint: "Enter 发送 · Tab 打开表单",
    form_hint: "Enter 发送 · Shift+Enter 换行 · Esc 关闭",
    close_form: "关闭表单",
    add_option: "添加{name}",
    remove_option: "移除{name}",
    more_options: "更多选项",
    required: "必填",
    fill_in: "请填写“{name}”。",
    pick_one: "请从列表中选择“{name}”。",
    whole_number: "“{name}”应为整数。",
    a_number: "“{name}”应为数字。",
    at_least: "“{name}”不能小于 {min}。",
    at_most: "“{name}”不能大于 {max}。",
    too_short: "“{name}”至少需要 {min} 个字符。",
    too_long: "“{name}”最多 {max} 个字符。",
    choose_between: "“{name}”请选择 {min} 到 {max} 项。",
    no_member: "没有成员“{text}”。",
    range: "{min} 至 {max}",
    range_from: "不小于 {min}",
    range_to: "不大于 {max}",
    choose: "请选择……",
    chosen: "已选 {count} 项",
    yes: "是",
    no: "否",
    search: "输入以搜索",
    searching: "正在搜索……",
    nothing_found: "没有找到",
    nothing_to_choose: "没有可选的内容",
    drop_here: "将文件拖到此处、粘贴，或",
    choose_file: "选择文件",
    uploading: "正在上传……",
    still_uploading: "“{name}”仍在上传。",
    upload_failed: "文件上传失败。",
    remove_file: "移除文件 {name}",
    cancel: "取消",
    submit: "提交",
    characters: "{count} / {max}",
    welcome_title: "在聊天中画图",
    welcome_body: "这是 zbot 的沙盒：真正的机器人，运行在只属于这台电脑的聊天里。无需账号、令牌或显卡。内置的小模型会画表情符号风格的图片：动物、食物、交通工具、地点。",
    welcome_how: "输入 /imagine 和想看到的内容，或者从下面的例子开始：",
    welcome_more: "输入 / 查看全部命令。在左侧可以切换成其他成员或管理员。",
    welcome_more_phone: "输入 / 查看全部命令。在菜单中可以切换成其他成员或管理员。",
    today: "今天",
    yesterday: "昨天",
  },
};

// One prompt in each language; the welcome offers both to everyone, because the model reads both.
export const EXAMPLES = [
  { lang: "en", prompt: "a rocket in space" },
  { lang: "zh-CN", prompt: "一只可爱的熊猫" },
];

let locale = "en-US";

/** Speak the language of a Discord locale from now on. */
export function setLocale(name) {
  locale = name || "en-US";
  document.documentElement.lang = locale;
}

export function currentLocale() {
  return locale;
}

/** Say a sentence of the table, its {names} filled in; an entry with plural forms is chosen by `count`. */
export function t(key, values = {}) {
  const table = locale.toLowerCase().startsWith("zh") ? STRINGS.zh : STRINGS.en;
  let text = table[key];
  if (typeof text === "object") text = text[new Intl.PluralRules(locale).select(values.count)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** Choose the text for this person's language out of Discord's `*_localizations`. */
export function localised(text, translations) {
  if (!translations) return text;
  const language = locale.split("-")[0];
  return translations[locale] ?? Object.entries(translations).find(([name]) => name.split("-")[0] === language)?.[1] ?? text;
}

const TIME_STYLES = {
  t: { timeStyle: "short" },
  T: { timeStyle: "medium" },
  d: { dateStyle: "short" },
  D: { dateStyle: "long" },
  f: { dateStyle: "long", timeStyle: "short" },
  F: { dateStyle: "full", timeStyle: "short" },
};
const UNITS = [["year", 31536000], ["month", 2592000], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

/** Write a moment as Discord's styles t T d D f F R do. */
export function timeText(unix_s, style = "f") {
  const moment = new Date(unix_s * 1000);
  if (Number.isNaN(moment.getTime())) return "—";
  if (style !== "R") return new Intl.DateTimeFormat(locale, TIME_STYLES[style] ?? TIME_STYLES.f).format(moment);
  const seconds = Math.round(unix_s - Date.now() / 1000);
  const [unit, length] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return new Intl.RelativeTimeFormat(locale, { numeric: "auto" }).format(Math.trunc(seconds / length), unit);
}

/** Name the day of a moment: today, yesterday or its date. */
export function dayText(moment) {
  const midnight = (date) => new Date(date).setHours(0, 0, 0, 0);
  const days = Math.round((midnight(Date.now()) - midnight(moment)) / 86400000);
  if (days === 0) return t("today");
  if (days === 1) return t("yesterday");
  return new Intl.DateTimeFormat(locale, { dateStyle: "full" }).format(moment);
}
