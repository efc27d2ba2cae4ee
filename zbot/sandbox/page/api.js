// Speaks with the sandbox: JSON over fetch, events over one WebSocket that comes back by itself.

/** What the sandbox refused, in its own sentence; `status` is 0 when it did not answer at all. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Refused("", 0);
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(body.error ?? `${response.status} ${response.statusText}`, response.status);
  return body;
}

/** Fetch all that `user` may see; without a user the sandbox chooses the first. */
export function fetchState(user) {
  return answer(fetch(`/sandbox/state${user ? `?user=${encodeURIComponent(user)}` : ""}`, { cache: "no-store" }));
}

/** Use a command, a component, a modal or autocomplete; resolves to `{id, …}`. Throws `Refused`. */
export function interact(body, signal) {
  return answer(fetch("/sandbox/interactions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  }));
}

/** Upload one file for an attachment option; resolves to `{id, filename, size, content_type}`. Throws `Refused`. */
export function upload(file) {
  const query = new URLSearchParams({ filename: file.name || "file" });
  return answer(fetch(`/sandbox/attachments?${query}`, {
    method: "POST", headers: { "Content-Type": file.type || "application/octet-stream" }, body: file,
  }));
}

const FIRST_RETRY_MS = 400;
const LONGEST_RETRY_MS = 8000;

/** Listen to the events of one person. It comes back by itself when it is lost. Returns `close()`. */
export function listen(user, { onEvent, onOpen, onLost }) {
  let socket = null;
  let timer = 0;
  let wait_ms = FIRST_RETRY_MS;
  let closed = false;

  function connect() {
    clearTimeout(timer);
    const url = new URL(`/sandbox/events?user=${encodeURIComponent(user)}`, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(url);
    socket.addEventListener("open", () => {
      wait_ms = FIRST_RETRY_MS;
      onOpen();
    });
    socket.addEventListener("message", (message) => !closed && onEvent(JSON.parse(message.data)));
    socket.addEventListener("close", () => {
      if (closed) return;
      onLost();
      timer = setTimeout(connect, wait_ms);
      wait_ms = Math.min(wait_ms * 2, LONGEST_RETRY_MS);
    });
  }

  // A laptop that wakes up, or a tab that is looked at again, need not sit out the rest of a long wait.
  function retryNow() {
    if (closed || document.hidden || socket.readyState !== WebSocket.CLOSED) return;
    wait_ms = FIRST_RETRY_MS;
    connect();
  }
  window.addEventListener("online", retryNow);
  document.addEventListener("visibilitychange", retryNow);
  connect();

  return () => {
    closed = true;
    clearTimeout(timer);
    window.removeEventListener("online", retryNow);
    document.removeEventListener("visibilitychange", retryNow);
    socket.close();
  };
}
