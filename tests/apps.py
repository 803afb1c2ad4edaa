"""The apps that the tests serve: each answers "Process PID " to whoever asks for a page."""

from __future__ import annotations

import contextlib
import http.client

from .conftest import PATIENCE


def asked(port: int, host: str = "127.0.0.1") -> str:
    """The page that the server on a port answers with; nothing while there is none."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as connection:
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.read().decode() if answer.status == 200 else ""
        except (OSError, http.client.HTTPException):
            return ""


ASGI = """\
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": event + ".complete"})
            if event == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"Process %d " % os.getpid()})
"""
WSGI = """\
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Process %d " % os.getpid()]
"""
PAGE = 'def page():\n    import os\n    return f"Process {os.getpid()} "\n'
FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n\n@app.get('/')\n" + PAGE
FLASK = "from flask import Flask\napp = Flask(__name__)\n\n@app.route('/')\n" + PAGE
QUART = "from quart import Quart\napp = Quart(__name__)\n\n@app.route('/')\nasync " + PAGE
LITESTAR = f"from litestar import Litestar, get\n\n@get('/')\nasync {PAGE}app = Litestar([page])\n"
LITESTAR = LITESTAR.replace("):", ") -> str:")
FACTORY = "from flask import Flask\ndef create_app(config=None):\n    app = Flask(__name__)\n    return app\n"
DJANGO = """\
import os, sys
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.urls import path

settings.configure(DEBUG=True, SECRET_KEY="none", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
urlpatterns = [path("", lambda request: HttpResponse(f"Process {os.getpid()} "))]
if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""
SANIC = """\
import os
from sanic import Sanic, text
app = Sanic("x")

@app.get("/")
async def page(request): return text(f"Process {os.getpid()} ")
"""
DASH = "from dash import Dash, html\napp = Dash('x')\napp.layout = html.P('hello')\nserver = app.server\n"
NODE = """\
require('http').createServer((question, answer) => answer.end(`Process ${process.pid} `))
  .listen(process.argv[2] || process.env.PORT);
"""
CLUSTER = f"""\
const cluster = require('cluster');
if (cluster.isPrimary || cluster.isMaster) for (let i = 0; i < 3; i++) cluster.fork();
else {NODE}
"""
NGINX = """\
daemon off; pid nginx.pid; worker_processes 2;
events {}
http {
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server { listen 127.0.0.1:{port}; location / { return 200 "Process nginx"; } }
}
"""
