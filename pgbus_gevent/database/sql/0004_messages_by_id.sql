-- Ids come from one sequence for all streams, so what is new anywhere lies at this index's end: a worker finds it in one
-- short read, however many streams it serves.
create index messages_by_id on pgbus.messages (msg_id);
