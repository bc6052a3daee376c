-- description: The limits as they were last set, so that a store that lost its data gets them back.

create table principal_budgets (
    root         text    not null,
    limit_id     text    not null,
    scope        text    not null,
    unit         text    not null,
    amount       text    not null,
    limit_window text    not null,
    timezone     text    not null,
    mode         text    not null,
    since_ms     integer not null,
    updated_at   text    not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    deleted_at   text,
    primary key (root, limit_id)
);
