-- description: What happened to limits: who changed them, what was topped up, which thresholds fired, what still has to be delivered.

create table limit_events (
    seq             integer primary key autoincrement,
    event_id        text    not null unique,
    kind            text    not null,
    root            text    not null,
    limit_id        text    not null,
    scope           text    not null,
    -- a counter, or the base of an override
    counter         text    not null,
    unit            text    not null,
    amount          integer check (typeof(amount) in ('integer', 'null')),
    until_ms        integer,
    at_ms           integer not null,
    actor           text    not null,
    reason          text    not null,
    detail          text    not null,
    -- an event is never changed, but for how its delivery stands
    delivered_at    text,
    attempts        integer not null default 0,
    next_attempt_ms integer not null default 0,
    -- JSON: the receivers that have it, while others still lack it
    delivered_to    text    not null default '[]',
    at text generated always as (strftime('%Y-%m-%dT%H:%M:%fZ', at_ms / 1000.0, 'unixepoch')) virtual
);

create index limit_events_limit_idx on limit_events (root, limit_id, seq);
create index limit_events_scope_idx on limit_events (root, scope, seq);
create index limit_events_undelivered_idx on limit_events (kind, at_ms, next_attempt_ms) where delivered_at is null;
create index limit_events_adjusted_idx on limit_events (root, kind, counter) where kind in ('top_up', 'override');
create index limit_events_counter_idx on limit_events (counter, kind) where kind in ('top_up', 'override');
