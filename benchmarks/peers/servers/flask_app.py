"""A Flask application with Flask-SSE, and a view that publishes. It runs in the peers' environment, under gunicorn with gevent."""

import os

from flask import Flask, request
from flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["PEERS_REDIS_URL"]
app.register_blueprint(sse, url_prefix="/stream")


@app.post("/send/<stream>")
def send(stream):
    sse.publish({"text": request.get_data(as_text=True)}, type="message", channel=stream)
    return "", 204
