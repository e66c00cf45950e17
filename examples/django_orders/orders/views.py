"""The page with the orders, and the form that adds one."""

from django.contrib.auth.decorators import login_required
from django.db import connection, transaction
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST

from pgbus_gevent.django import get_bus

from .models import Order


@login_required
def page(request):
    with transaction.atomic():
        with connection.cursor() as cursor:  # one snapshot for the rows and the watermark in the tag
            cursor.execute("set transaction isolation level repeatable read")
        return render(request, "orders.html", {"orders": Order.objects.order_by("id")})


@login_required
@require_POST
def order(request):
    item = request.POST["item"]
    orders = get_bus().stream("orders")
    with transaction.atomic():  # the order and its messages: all of them, or none
        Order.objects.create(item=item)
        orders.broadcast(item, event="order", using=connection)
        orders.broadcast(f"{item}, for {request.user}", event="customer", visible_to="staff", using=connection)
    return HttpResponse(status=204)
