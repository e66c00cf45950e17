"""Redis or Valkey as a way for wakes and as a store of recent messages: the only folder that knows redis-py.

Nothing here is imported unless the setting ``wake`` names a Redis.
"""
