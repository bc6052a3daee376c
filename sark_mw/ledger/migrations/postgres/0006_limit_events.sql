-- description: What happened to limits: who changed them, what was topped up, which thresholds fired, what still has to be delivered.

create table limit_events (
    seq             bigint generated always as identity primary key,
    event_id        text   not null unique,
    kind            text   not null,
    root            text   not null,
    limit_id        text   not null,
    scope           text   not null,
    counter         text   not null,
    unit            text   not null,
    amount          bigint,
    until_ms        bigint,
    at_ms           bigint not null,
    actor           text   not null,
    reason          text   not null,
    -- not jsonb, which would respell it
    detail          json   not null,
    delivered_at    timestamptz,
    attempts        integer not null default 0,
    next_attempt_ms bigint  not null default 0,
    delivered_to    json    not null default '[]',
    at              timestamptz generated always as (to_timestamp(at_ms / 1000.0)) stored
);

comment on table limit_events is 'What happened to limits of sark_mw: never changed, but for how the delivery stands';
comment on column limit_events.counter is 'The counter that it concerns, or the base of an override';
comment on column limit_events.amount is 'In the unit''s integer: 1e-9 USD for usd';
comment on column limit_events.delivered_to is 'The receivers that have it, while others still lack it';

create index limit_events_limit_idx on limit_events (root, limit_id, seq);
create index limit_events_scope_idx on limit_events (root, scope, seq);
create index limit_events_undelivered_idx on limit_events (kind, at_ms, next_attempt_ms) where delivered_at is null;
create index limit_events_adjusted_idx on limit_events (root, kind) where kind in ('top_up', 'override');
-- A hash, since names of counters may be too long for a B-tree.
create index limit_events_counter_idx on limit_events using hash (counter) where kind in ('top_up', 'override');
