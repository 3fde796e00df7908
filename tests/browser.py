"""A real browser for tests: Chromium without a window, driven over a pipe (its DevTools protocol), without packages."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESK = 390, 1400
PATIENCE = 120  # seconds for one answer, on a busy machine


def program() -> str:
    """The browser's path; without one the test is skipped, and fails in CI, where it must be there."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        reason = "no chromium here; apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return str(found)


class Tab:
    """One open page."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._count, self._rest = write, read, 0, b""
        self._session: dict[str, str] = {}
        self._events: list[str | None] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer.get("method"))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, *_ = select.select([self._read], [], [], PATIENCE)
            assert ready, f"the browser has not answered for {PATIENCE} s"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        return json.loads(text)

    def open(self, url: str | Path, width: int = DESK, dark: bool = False, height: int = 900) -> None:
        """Load a page at a width and in a colour scheme, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width <= PHONE)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=url.as_uri() if isinstance(url, Path) else url)
        while "Page.loadEventFired" not in self._events:
            self._events.append(self._next().get("method"))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, which may be awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """A click of the mouse at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """The mouse pressed at one place, moved to another in steps, and released."""
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for k in range(1, 6):
            self.move(x + (to_x - x) * k / 5, y + (to_y - y) * k / 5, buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, button="left", clickCount=1)

    def move(self, x: float, y: float, buttons: int = 0) -> None:
        """The mouse moved."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=buttons)

    def picture(self, file: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={
            "x": 0, "y": 0, "width": self.run("innerWidth"), "scale": 1,
            "height": self.run("document.documentElement.scrollHeight"),
        })  # fmt: skip
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser of its own profile, ended afterwards."""
    path = program()
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The protocol reads from descriptor 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
        process = subprocess.Popen(
            ["bash", "-c", command, path, *FLAGS.split(), f"--user-data-dir={profile}"],
            pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        try:
            tab = Tab(to_write, from_read)
            yield tab
            tab._session = {}
            tab.call("Browser.close")
        finally:
            os.close(to_write)
            os.close(from_read)
            process.terminate()
            process.wait(20)


# What is wrong on a page, by the boxes of its elements: wider than the window, text over text, bars of no height.
CHECK = r"""(() => {
  const room = document.documentElement.clientWidth, wrong = [];
  const about = e => (e.outerHTML ?? e.textContent).slice(0, 90);
  const inside = e => e.closest(".canvas, pre, .md-typeset__scrollwrap, .highlight, [data-md-component=search], "
    + "[data-md-component=sidebar]");
  const drawn = e => e.checkVisibility({visibilityProperty: true, opacityProperty: true, contentVisibilityAuto: true})
    && !e.closest("thead:not(:has(th:not([hidden]))), [aria-hidden=true]");
  const clipped = e => [...function* () { for (let p = e; p; p = p.parentElement) yield p; }()]
    .some(p => getComputedStyle(p).clipPath !== "none");
  if (document.documentElement.scrollWidth > room) wrong.push(["page wider", document.documentElement.scrollWidth]);
  const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || e.closest("script, style, option, title") || !drawn(e) || clipped(e)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1) texts.push([box, node, inside(e)]);
  }
  for (const [box, node, canvas] of texts)
    if (!canvas && (box.right > room + 1 || box.left < -1)) wrong.push(["text out of the window", about(node)]);
  const byTop = texts.sort(([a], [b]) => a.top - b.top);
  byTop.forEach(([a, one, canvas], k) => {
    for (let m = k + 1; m < byTop.length && byTop[m][0].top < a.bottom - 3; m++) {
      const [b, two, other] = byTop[m];
      if (one === two || canvas !== other) continue;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && high > 3) wrong.push(["text over text", about(one), about(two), [wide, high].join(" × ")]);
    }
  });
  for (const svg of document.querySelectorAll("main svg[role=img]"))
    if (drawn(svg) && !svg.closest(".md-nav")) {
      const box = svg.getBoundingClientRect();
      if (box.height < 6 || box.width < 40) wrong.push(["a drawing that cannot be read", about(svg)]);
    }
  return wrong;
})()"""
