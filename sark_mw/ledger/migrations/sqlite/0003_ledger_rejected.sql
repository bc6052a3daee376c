-- description: Entries that cost_tracking would not take, whole and with the reason: nothing is lost, nothing blocks.

create table ledger_rejected (
    digest         text primary key,
    rejected_at    text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    reservation_id text not null,
    reason         text not null,
    content        text not null
);
