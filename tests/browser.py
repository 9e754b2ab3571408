"""What a real browser asks for when it opens a page."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def requests_of_page(page: Path, tmp_path: Path) -> tuple[str, list[str]]:
    """The page as Chromium built it, and the addresses that it asked for on the page's behalf.

    Chromium's own errands have no origin.
    """
    log = tmp_path / "net.json"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--log-net-log={log}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [e["url"] for e in events if e.get("initiator", "not an origin") != "not an origin"]
    return done.stdout, [url for url in asked if url.startswith("http")]


_LOUD = {
    *("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"),
    "Log.entryAdded",  # also what the content security policy has refused
}


class Browser:
    """A headless Chromium that is driven through its debugging pipe, and all that it reports."""

    def __init__(self, profile: Path) -> None:
        (here, theirs), (answers, ours) = os.pipe(), os.pipe()
        self._out, self._in, self._number, self.events = theirs, answers, 0, []
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"]
        command = ["bash", "-c", f'exec "$@" 3<&{here} 4>&{ours}', "bash", CHROMIUM, *flags]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=(here, ours),
            stderr=subprocess.DEVNULL,
        )
        os.close(here), os.close(ours)
        self._unread, self._session = b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Debugger", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; what happens meanwhile goes to `events`."""
        number = self._send(method, **parameters)
        while answer := self._read(60):
            if answer.get("id") == number:
                return answer.get("result", answer)
        raise TimeoutError(method)

    def _send(self, method: str, **parameters: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return self._number

    def _read(self, seconds: float) -> dict[str, Any]:
        """Reads one message; empty if none comes in time."""
        while b"\0" not in self._unread:
            if not select.select([self._in], [], [], seconds)[0]:
                return {}
            self._unread += os.read(self._in, 2**20)
        first, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(first)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
            if message["method"] == "Page.javascriptDialogOpening":  # which stops the page
                self._send("Page.handleJavaScriptDialog", accept=False)
        return message

    def deeds(self, page: Path, script: str, seconds: float = 1.5) -> tuple[str, list[str]]:
        """Opens a page: its text, and what it did beyond showing itself and running `script`."""
        self._open("about:blank", 0)
        url = page.as_uri()
        self._open(url, seconds)
        events, deeds = list(self.events), []
        for name, about in events:
            if name == "Debugger.scriptParsed" and about["url"]:
                source = self.ask("Debugger.getScriptSource", scriptId=about["scriptId"])
                ran = source.get("scriptSource", "that is gone")
                deeds += [f"script {ran[:60]}"] * (ran != script)
            elif name == "Network.requestWillBeSent" or name == "Page.frameRequestedNavigation":
                asked = about.get("url") or about["request"]["url"]
                deeds += [f"request {asked[:80]}"] * (not asked.startswith(("data:", url)))
            elif name in _LOUD:
                deeds.append(f"{name} {about}")
        shown = self.ask("Runtime.evaluate", expression="String(document.body?.innerText)")
        return shown["result"]["value"], deeds

    def _open(self, url: str, seconds: float) -> None:
        """Opens an address, waits until it is loaded, and then for what it may do by itself."""
        self.events.clear()
        self.ask("Page.navigate", url=url)
        end = time.monotonic() + 60
        while "Page.loadEventFired" not in dict(self.events) and time.monotonic() < end:
            self._read(1)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
