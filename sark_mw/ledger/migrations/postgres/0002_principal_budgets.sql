-- description: The limits as they were last set, so that a store that lost its data gets them back.

create table principal_budgets (
    root         text    not null,
    limit_id     text    not null,
    scope        text    not null,
    unit         text    not null,
    amount       numeric not null,
    limit_window text    not null,
    timezone     text    not null,
    mode         text    not null,
    since_ms     bigint  not null,
    updated_at   timestamptz not null default now(),
    deleted_at   timestamptz,
    primary key (root, limit_id)
);

comment on table principal_budgets is 'Limits of sark_mw; a dropped one keeps its row, with deleted_at';
create index principal_budgets_scope_idx on principal_budgets (scope) where deleted_at is null;
