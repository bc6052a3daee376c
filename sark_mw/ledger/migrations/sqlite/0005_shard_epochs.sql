-- description: The fence of each shard: entries of another life of the store's data are not counted any more.

create table shard_epochs (
    shard     integer primary key,
    epoch     text    not null,
    -- the sequence after which that epoch numbers its entries
    base_seq  integer not null,
    fenced_at text    not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
