"""The pages of the example."""

from django.contrib.auth.views import LoginView
from django.urls import path
from orders import views

urlpatterns = [
    path("", views.page, name="orders"),
    path("order", views.order, name="order"),
    path("login/", LoginView.as_view(template_name="login.html"), name="login"),
]
