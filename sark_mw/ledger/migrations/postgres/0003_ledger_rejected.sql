-- description: Entries that cost_tracking would not take, whole and with the reason: nothing is lost, nothing blocks.

create table ledger_rejected (
    digest         text primary key,
    rejected_at    timestamptz not null default now(),
    reservation_id text not null,
    reason         text not null,
    -- JSON as text: jsonb might refuse it again
    content        text not null
);
