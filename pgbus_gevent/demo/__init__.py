"""What ``serve`` shows without an application: a departures board of real flights, and a lab to try the product in.

``flights`` holds the data, ``schedule`` turns it into a timeline, ``board`` keeps the board in PostgreSQL, ``replayer`` moves it
on and publishes each change, ``departures`` is its page. ``lab`` is the second page, with ``answers``, which are written word by
word, and ``visitors``, who is here and who may see what. ``pages`` has what both pages need, ``site`` puts it all together.
Nothing here is imported by the rest of the package but ``serve``.
"""
