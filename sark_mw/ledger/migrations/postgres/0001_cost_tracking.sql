-- description: The append-only record of money: one row per resolution of a reservation, never updated.

create table cost_tracking (
    reserved_at          timestamptz not null,
    reservation_id       text        not null,
    part                 bigint      not null,
    kind                 text        not null,
    root                 text        not null,
    shard                bigint      not null,
    shard_seq            bigint      not null,
    epoch                text        not null,
    booked_at            timestamptz not null,
    cost_nanos           bigint      not null,
    -- multiplied, not divided: a division keeps 16 digits only; 11 digits before the point hold any bigint of nanos
    cost_usd             numeric(20, 9) generated always as (cost_nanos * 0.000000001) stored,
    requests             bigint      not null,
    tokens               bigint      not null,
    booked_input_tokens  bigint      not null,
    booked_output_tokens bigint      not null,
    estimated            boolean     not null,
    late                 boolean     not null,
    principal_id         text        not null,
    resource_id          text        not null,
    capability_id        text        not null,
    scopes               text[]      not null,
    provider             text,
    model                text,
    held_nanos           bigint      not null,
    expected_nanos       bigint      not null,
    actual_nanos         bigint,
    input_tokens         bigint      not null,
    cache_read_tokens    bigint      not null,
    cache_write_tokens   bigint      not null,
    output_tokens        bigint      not null,
    reasoning_tokens     bigint      not null,
    status               bigint,
    stream               boolean     not null,
    request_id           text        not null,
    metadata             jsonb       not null,
    -- the time is part of the key because a hypertable wants it there; a retry carries the same one
    primary key (reservation_id, part, reserved_at)
);

comment on table cost_tracking is 'Append-only ledger of sark_mw: one row per (partial) resolution of a reservation';
comment on column cost_tracking.reserved_at is 'When it was reserved: decides the period that the cost belongs to';
comment on column cost_tracking.cost_nanos is 'What was booked, in 1e-9 USD; negative in corrections';
comment on column cost_tracking.estimated is 'The usage was never known: booked at the larger of what was known and expected';
comment on column cost_tracking.late is 'A correction, or booked after the end of the reservation';

create index cost_tracking_reserved_at_idx on cost_tracking (reserved_at desc);
-- Covering: the sums of a principal are answered from the index alone.
create index cost_tracking_principal_idx on cost_tracking (principal_id, reserved_at desc)
    include (cost_nanos, requests, tokens, booked_input_tokens, booked_output_tokens);
create index cost_tracking_scopes_idx on cost_tracking using gin (scopes);
create index cost_tracking_shard_seq_idx on cost_tracking (shard, shard_seq);
create index cost_tracking_shard_booked_idx on cost_tracking (shard, booked_at);
