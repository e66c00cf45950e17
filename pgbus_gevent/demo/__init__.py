"""The demo, which ``serve`` shows without an application: a departures board of real flights, and a lab.

For the board, ``flights`` holds the data, ``schedule`` turns it into a timeline, ``board`` keeps the board in PostgreSQL,
``replayer`` updates it and publishes each change, and ``departures`` is the page. For the lab, ``lab`` is the page, ``answers``
writes answers word by word, and ``visitors`` holds the users, their rights and their presence. Both pages use ``pages``, and
``site`` puts everything together. In the package, only ``serve`` imports this folder.
"""
