"""Drives headless Chromium through chromedriver with the standard library alone, for the tests of the sandbox's page."""

import base64
import contextlib
import http.client
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

CHROMIUM = "chromium"
CHROMEDRIVER = "chromedriver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
)
START_WITHIN_S = 30.0
REQUEST_WITHIN_S = 60.0
WAIT_S = 30.0

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver's standard gives element references

ENTER = "\ue007"
ESCAPE = "\ue00c"
TAB = "\ue004"
SHIFT = "\ue008"
BACKSPACE = "\ue003"
LEFT = "\ue012"
UP = "\ue013"
RIGHT = "\ue014"
DOWN = "\ue015"

# Runs in the page: looks at once and again after every change of the document, so that nothing is slept through.
# Times and pictures change without touching the document; the frame timer sees those.
_WAIT = """
const [timeout_ms, done] = arguments;
const probe = () => (EXPRESSION);
let timer = 0;
const started = performance.now();
function look() {
  let value = null;
  try { value = probe(); } catch (error) { finish({error: String(error)}); return; }
  if (value) finish({value});
  else if (performance.now() - started > timeout_ms) finish({timeout: true});
}
function finish(answer) { observer.disconnect(); clearInterval(timer); done(answer); }
const observer = new MutationObserver(look);
observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
timer = setInterval(look, 50);
look();
"""


class BrowserError(Exception):
    """chromedriver refused a command; `kind` is WebDriver's error code."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message.splitlines()[0] if message else ''}")
        self.kind = kind


def available() -> bool:
    """Say whether Chromium and its driver are installed."""
    return shutil.which(CHROMIUM) is not None and shutil.which(CHROMEDRIVER) is not None


class Element:
    """One element of the page."""

    def __init__(self, browser: "Browser", reference: str) -> None:
        self._browser = browser
        self._reference = reference

    def click(self) -> None:
        """Click in its middle, scrolled into view first. Raises: BrowserError when something covers it."""
        self._browser.call("POST", f"/element/{self._reference}/click", {})

    def type(self, text: str) -> None:
        """Send these keys to it; the module's constants name the special ones."""
        self._browser.call("POST", f"/element/{self._reference}/value", {"text": text})

    @property
    def text(self) -> str:
        """Return its visible text."""
        return self._browser.call("GET", f"/element/{self._reference}/text")

    @property
    def visible(self) -> bool:
        """Say whether a person would see it."""
        return self._browser.call("GET", f"/element/{self._reference}/displayed")

    def attribute(self, name: str) -> str | None:
        """Return an attribute of it as written in the document."""
        return self._browser.script("return arguments[0].getAttribute(arguments[1])", self, name)

    def property(self, name: str) -> Any:
        """Return a live property of it, such as `value` or `naturalWidth`."""
        return self._browser.call("GET", f"/element/{self._reference}/property/{name}")

    def reference(self) -> dict[str, str]:
        """Return it as WebDriver writes elements in arguments of scripts."""
        return {_ELEMENT: self._reference}


class Browser:
    """A headless Chromium with a profile of its own. Use as a context manager; not safe from several threads."""

    def __init__(self, *, width: int = 1280, height: int = 800, language: str = "en-US") -> None:
        """Start the driver and the browser. Raises: BrowserError, FileNotFoundError when one is not installed."""
        self._profile = tempfile.TemporaryDirectory(prefix="zbot-browser-", ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [shutil.which(CHROMEDRIVER) or CHROMEDRIVER, "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._session = ""
        try:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=REQUEST_WITHIN_S)
            options: dict[str, Any] = {
                "binary": shutil.which(CHROMIUM),
                "args": [*FLAGS, f"--user-data-dir={self._profile.name}", f"--lang={language}"],
            }
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "unhandledPromptBehavior": "accept",
            }
            started = self._request("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = started["sessionId"]
            self.call(
                "POST",
                "/timeouts",
                {"script": int(REQUEST_WITHIN_S * 1000), "pageLoad": int(START_WITHIN_S * 1000)},
            )
            self.viewport(width, height)
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                return int(found[1])
        raise BrowserError("session not created", "chromedriver ended before it listened")

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        payload = None if body is None else json.dumps(body)
        self._connection.request(method, path, payload, {"Content-Type": "application/json; charset=utf-8"})
        value = json.loads(self._connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value and "stacktrace" in value:
            raise BrowserError(value["error"], value["message"])
        return value

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one WebDriver command of this browser and return its value. Raises: BrowserError."""
        return self._request(method, f"/session/{self._session}{path}", body)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send one command of the DevTools protocol, for what WebDriver has no word for."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    # Looking

    def open(self, url: str) -> None:
        """Load a page and wait until it and its scripts are there."""
        self.call("POST", "/url", {"url": url})

    def find(self, selector: str) -> Element:
        """Return the first element of a CSS selector. Raises: BrowserError when there is none."""
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return Element(self, found[_ELEMENT])

    def find_all(self, selector: str) -> list[Element]:
        """Return all elements of a CSS selector, in the document's order."""
        found = self.call("POST", "/elements", {"using": "css selector", "value": selector})
        return [Element(self, reference[_ELEMENT]) for reference in found]

    def script(self, source: str, *arguments: Any) -> Any:
        """Run a function body in the page and return what it returns; elements may be arguments."""
        given = [
            argument.reference() if isinstance(argument, Element) else argument for argument in arguments
        ]
        return self.call("POST", "/execute/sync", {"script": source, "args": given})

    def wait_until(self, expression: str, *, timeout_s: float = WAIT_S) -> Any:
        """Wait until a JavaScript expression is true and return its value. Raises: TimeoutError, BrowserError."""
        # Written into the script, not evaluated by it: the page's policy forbids to evaluate text.
        source = _WAIT.replace("EXPRESSION", expression)
        answer = self.call("POST", "/execute/async", {"script": source, "args": [timeout_s * 1000]})
        if answer.get("timeout"):
            raise TimeoutError(f"not within {timeout_s} s: {expression}")
        if "error" in answer:
            raise BrowserError("javascript error", answer["error"])
        return answer["value"]

    def wait_for(self, selector: str, *, text: str | None = None, timeout_s: float = WAIT_S) -> Element:
        """Wait for a visible element of this selector, holding `text` if given. Raises: TimeoutError."""
        wanted = json.dumps(text)
        chosen = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.checkVisibility() && "
            f"({wanted} === null || e.textContent.includes({wanted})))"
        )
        return Element(self, self.wait_until(chosen, timeout_s=timeout_s)[_ELEMENT])

    def wait_gone(self, selector: str, *, timeout_s: float = WAIT_S) -> None:
        """Wait until no element of this selector is left. Raises: TimeoutError."""
        self.wait_until(f"!document.querySelector({json.dumps(selector)})", timeout_s=timeout_s)

    def console(self) -> list[str]:
        """Return and forget what the page has written to the console, errors and refused requests among it."""
        return [
            f"{entry['level']}: {entry['message']}"
            for entry in self.call("POST", "/se/log", {"type": "browser"})
        ]

    def title(self) -> str:
        """Return the title of the document."""
        return self.call("GET", "/title")

    # Acting

    def click(self, selector: str) -> None:
        """Click the first element of a selector once it is visible. Raises: TimeoutError, BrowserError."""
        self.wait_for(selector).click()

    def type(self, selector: str, text: str) -> None:
        """Type into the first element of a selector once it is visible. Raises: TimeoutError, BrowserError."""
        self.wait_for(selector).type(text)

    def insert(self, text: str) -> None:
        """Enter text where the focus is as an input method does: also what no key has."""
        self.devtools("Input.insertText", text=text)

    def press(self, keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        steps = [
            step
            for key in keys
            for step in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})
        ]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": steps}]})

    # The window

    def viewport(self, width: int, height: int, *, phone: bool = False, scale: float = 1.0) -> None:
        """Lay the page out at this size in CSS pixels; `phone` turns on touch and a phone's viewport rules."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=phone)

    def colours(self, scheme: str, *, reduced_motion: bool = True) -> None:
        """Prefer "light" or "dark"; motion is reduced unless asked for, so that a screenshot shows what stands."""
        motion = "reduce" if reduced_motion else "no-preference"
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> Path:
        """Write what the window shows as PNG and return the path."""
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
        return path

    def close(self) -> None:
        """End the browser and its driver and delete the profile; harmless when repeated."""
        if self._session:
            # It may be gone already; the driver is ended below either way.
            with contextlib.suppress(OSError, http.client.HTTPException, BrowserError):
                self._request("DELETE", f"/session/{self._session}")
            self._session = ""
        if hasattr(self, "_connection"):
            self._connection.close()
        self._driver.terminate()
        try:
            self._driver.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()
