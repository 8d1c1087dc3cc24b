"""Serves a folder to a browser without a window, prints what its page tells, and ends as the page ends.

run.py FOLDER CASES SECONDS BROWSER [ARGUMENT...]
"""

import functools
import http.server
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

folder, cases, seconds, *browser = sys.argv[1:]
ended = threading.Event()
status = 1


class Page(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        global status
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.end_headers()
        if self.path == "/end":
            status = int(text)
            ended.set()
        else:
            print(text, flush=True)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Page, directory=folder))
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/index.html?cases={urllib.parse.quote(cases)}"
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    shown = subprocess.Popen([*browser, f"--user-data-dir={profile}", address], stderr=subprocess.DEVNULL)
    last = time.monotonic() + float(seconds)
    while not ended.wait(1) and shown.poll() is None and time.monotonic() < last:
        pass
    if not ended.is_set():
        print(f"the page did not end within {seconds} s, or its browser before it", flush=True)
    shown.terminate()
    shown.wait()
sys.exit(status)
