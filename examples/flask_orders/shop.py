"""The orders of a small shop, live, in Flask: each customer sees an order at once, and only the staff sees its price.

Run `python -m pgbus_gevent.serve shop:app` in this folder, and open http://127.0.0.1:8080/ in two windows.
"""

import os
import secrets

from flask import Flask, redirect, render_template, request, session, url_for

from pgbus_gevent import Subscriber
from pgbus_gevent.flask import Pgbus

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
pgbus = Pgbus(app)

with app.app_context(), pgbus.bus.transaction() as cursor:
    cursor.execute("create table if not exists orders (id bigint generated always as identity primary key, item text)")


@pgbus.authorize
def may_watch(stream):
    """Whoever has a name may watch, and the staff sees more."""
    if "name" not in session:
        return False
    return Subscriber(owner=session["name"], labels={"staff"} if session["name"] == "staff" else set())


@app.get("/")
def page():
    if "name" not in session:
        return render_template("login.html")
    with pgbus.bus.transaction("repeatable read") as cursor:  # one snapshot for the rows and the watermark in the tag
        cursor.execute("select id, item from orders order by id")
        return render_template("orders.html", orders=cursor.fetchall(), cursor=cursor)


@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return redirect(url_for("page"))


@app.post("/orders")
def order():
    item = request.form["item"]
    orders = pgbus.bus.stream("orders")
    with pgbus.bus.transaction() as cursor:  # the order and its messages: all of them, or none
        cursor.execute("insert into orders (item) values (%s)", (item,))
        orders.broadcast(item, event="order", using=cursor)
        orders.broadcast(f"{item}: 3 dollars", event="price", visible_to="staff", using=cursor)
    return "", 204
