"""An order."""

from django.db import models


class Order(models.Model):
    """What somebody would like."""

    item = models.TextField()
