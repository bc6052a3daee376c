-- description: The append-only record of money: one row per resolution of a reservation, never updated.

create table cost_tracking (
    id                   integer primary key,
    reservation_id       text    not null,
    part                 integer not null,
    kind                 text    not null,
    root                 text    not null,
    shard                integer not null,
    shard_seq            integer not null,
    epoch                text    not null,
    reserved_ms          integer not null check (reserved_ms between 0 and 253402300799999),
    booked_ms            integer not null check (booked_ms between 0 and 253402300799999),
    cost_nanos           integer not null check (typeof(cost_nanos) = 'integer'),
    requests             integer not null check (typeof(requests) = 'integer'),
    tokens               integer not null check (typeof(tokens) = 'integer'),
    booked_input_tokens  integer not null check (typeof(booked_input_tokens) = 'integer'),
    booked_output_tokens integer not null check (typeof(booked_output_tokens) = 'integer'),
    estimated            integer not null,
    late                 integer not null,
    principal_id         text    not null,
    resource_id          text    not null,
    capability_id        text    not null,
    scopes               text    not null,
    provider             text,
    model                text,
    held_nanos           integer not null,
    expected_nanos       integer not null,
    actual_nanos         integer,
    input_tokens         integer not null,
    cache_read_tokens    integer not null,
    cache_write_tokens   integer not null,
    output_tokens        integer not null,
    reasoning_tokens     integer not null,
    status               integer,
    stream               integer not null,
    request_id           text    not null,
    metadata             text    not null,
    reserved_at text generated always as (strftime('%Y-%m-%dT%H:%M:%fZ', reserved_ms / 1000.0, 'unixepoch')) virtual,
    booked_at   text generated always as (strftime('%Y-%m-%dT%H:%M:%fZ', booked_ms / 1000.0, 'unixepoch')) virtual,
    -- text, because SQLite's numbers with a point are doubles
    cost_usd    text generated always as (
        printf('%s%d.%09d', case when cost_nanos < 0 then '-' else '' end, abs(cost_nanos / 1000000000), abs(cost_nanos % 1000000000))
    ) virtual,
    unique (reservation_id, part, reserved_ms)
);

create index cost_tracking_reserved_idx on cost_tracking (reserved_ms);
create index cost_tracking_principal_idx on cost_tracking (
    principal_id, reserved_ms, cost_nanos, requests, tokens, booked_input_tokens, booked_output_tokens
);
create index cost_tracking_shard_seq_idx on cost_tracking (shard, shard_seq);
create index cost_tracking_shard_booked_idx on cost_tracking (shard, booked_ms);

-- The scopes of each row once more, as an index by scope.
create table cost_tracking_scopes (
    scope text    not null,
    entry integer not null references cost_tracking (id),
    primary key (scope, entry)
) without rowid;
