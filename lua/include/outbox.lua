-- Ledger events: what happened to a limit; they move no counter and have no number.
local function append_event(key, shard, epoch, now, kind, counter, id, detail)
  redis.call('XADD', key.outbox, '*',
    'id', id, 'part', '1', 'kind', kind, 'root', string.match(counter, '^[^|]*'), 'made', digits(now), 'at', digits(now),
    'seq', '0', 'epoch', epoch, 'shard', shard, 'est', '0', 'late', '0', 'booked', '', 'entry', cjson.encode(detail))
end

-- Ledger entries: one per resolution, numbered without gaps within the shard and its epoch.
local function append_entry(key, shard, epoch, e)
  local seq = redis.call('HINCRBY', key.meta, 'seq', '1')
  redis.call('XADD', key.outbox, '*',
    'id', e.id, 'part', digits(e.part), 'kind', e.kind, 'root', e.root, 'made', digits(e.made), 'at', digits(e.at),
    'seq', digits(seq), 'epoch', epoch, 'shard', shard, 'est', e.estimated and '1' or '0', 'late', e.late and '1' or '0',
    'booked', e.booked, 'entry', e.entry)
end
