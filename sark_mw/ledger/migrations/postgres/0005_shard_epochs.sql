-- description: The fence of each shard: entries of another life of the store's data are not counted any more.

create table shard_epochs (
    shard     bigint primary key,
    epoch     text   not null,
    base_seq  bigint not null,
    fenced_at timestamptz not null default now()
);

comment on table shard_epochs is 'Which epoch of a shard was rebuilt last, from the entries that were here then';
comment on column shard_epochs.base_seq is 'The sequence after which that epoch numbers its entries';
