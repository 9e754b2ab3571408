"""What a real browser asks for when it opens a page."""

import json
import shutil
import subprocess
from pathlib import Path

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
