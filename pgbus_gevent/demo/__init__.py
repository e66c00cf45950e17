"""A live departures board of New York's three airports: the product shown with a year of real flights.

``flights`` holds the data, ``schedule`` turns it into a timeline, ``board`` keeps the board in PostgreSQL,
``replayer`` moves it on and publishes each change, ``departures`` is the Bottle application with the page.
Nothing here is imported by the rest of the package but ``serve``, and nothing here uses more than the public API.
"""
